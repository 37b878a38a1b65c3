import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refusals import check, refusals
from tracetorch.functional import (
    decay_to_halflife,
    halflife_to_decay,
    sigmoid_inverse,
    softplus_inverse,
    time_constant_to_decay,
)


@given(st.floats(1e-7, 1 - 1e-7), st.floats(1e-6, 1e6))
def test_inverses_undo_sigmoid_and_softplus(share: float, number: float) -> None:
    x = sigmoid_inverse(share)
    assert 1 / (1 + math.exp(-x)) == pytest.approx(share, rel=1e-9)
    x = softplus_inverse(number)
    assert max(x, 0) + math.log1p(math.exp(-abs(x))) == pytest.approx(number, rel=1e-9)


@given(st.floats(0.01, 1e6), st.floats(0.01, 10.0))
def test_decays_leave_half_after_a_halflife_and_1_over_e_after_a_time_constant(time, dt):
    decay = halflife_to_decay(time)
    assert decay**time == pytest.approx(0.5, rel=1e-6)
    assert decay_to_halflife(decay) == pytest.approx(time, rel=1e-6)
    decay = time_constant_to_decay(time, dt=dt)
    assert decay == pytest.approx(math.exp(-dt / time))
    assert time_constant_to_decay(1.0, dt=dt / time) == pytest.approx(decay)


def test_limits_and_large_values() -> None:
    assert [sigmoid_inverse(0.0), sigmoid_inverse(1.0)] == [-math.inf, math.inf]
    assert softplus_inverse(0.0) == -math.inf
    assert halflife_to_decay(math.inf) == 1.0
    assert softplus_inverse(200.0) == 200.0
    assert softplus_inverse(torch.tensor([200.0, 1e30])).tolist() == pytest.approx([200.0, 1e30])


@pytest.mark.parametrize(
    ("convert", "value"),
    [
        (sigmoid_inverse, 0.3),
        (softplus_inverse, 0.3),
        (halflife_to_decay, 7),
        (time_constant_to_decay, 7),
        (decay_to_halflife, 0.3),
    ],
)
def test_tensors_keep_dtype_and_gradient(convert: Any, value: float) -> None:
    number = convert(value)
    assert type(number) is float
    for dtype in (torch.float32, torch.float64):
        x = torch.full((2,), float(value), dtype=dtype, requires_grad=True)
        y = convert(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, torch.full((2,), number, dtype=dtype))
        y.sum().backward()
        assert bool(torch.isfinite(x.grad).all())
    assert torch.autograd.gradcheck(convert, x)


@refusals(
    r"""
    sigmoid_inverse(1.5) -> ValueError: sigmoid_inverse: the value must lie in \[0, 1\], got 1.5
    sigmoid_inverse(math.nan) -> ValueError: must lie in \[0, 1\], got nan
    softplus_inverse(-1.0) -> ValueError: must be finite and not negative, got -1.0
    softplus_inverse(math.inf) -> ValueError: must be finite and not negative, got inf
    halflife_to_decay(0.0) -> ValueError: must be positive, got 0.0
    decay_to_halflife(1.0) -> ValueError: must lie strictly between 0 and 1, got 1.0
    decay_to_halflife(torch.tensor([0.5, 2.0])) -> ValueError: 0 and 1, got 2.0
    sigmoid_inverse("1") -> TypeError: sigmoid_inverse: the value must be a number, got '1'
    time_constant_to_decay(20.0, 0.0) -> ValueError: dt must be positive, got 0.0
    time_constant_to_decay(20.0, math.nan) -> ValueError: dt must be positive, got nan
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, globals())
