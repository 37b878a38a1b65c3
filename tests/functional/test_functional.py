"""Surrogates of the derivative of a spike, and conversions of decays and half-lives."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from tests.cases import SURROGATES
from tests.refusals import check, refusals
from tracetorch import functional, snn, unroll
from tracetorch.functional import (
    Surrogate,
    decay_to_halflife,
    halflife_to_decay,
    sigmoid_inverse,
    softplus_inverse,
    surrogates,
    time_constant_to_decay,
)

IDS = [type(surrogate).__name__ for surrogate in SURROGATES]


# each with another argument than its default, and its derivative
FORMULAS: dict[Surrogate, Callable[[float], float]] = {
    functional.atan_surrogate(alpha=3.0): lambda u: 3 / 2 / (1 + (math.pi / 2 * 3 * u) ** 2),
    functional.sigmoid_surrogate(slope=7.0): lambda u: 7 / (2 * math.cosh(7 * u / 2)) ** 2,
    functional.fast_sigmoid_surrogate(slope=10.0): lambda u: 1 / (1 + 10 * abs(u)) ** 2,
    functional.triangular_surrogate(width=2.0): lambda u: max(0.0, 1 - abs(u) / 2) / 2,
    functional.boxcar_surrogate(width=1.5): lambda u: 1 / 1.5 if abs(u) < 1.5 / 2 else 0.0,
    functional.gaussian_surrogate(sigma=0.7): lambda u: (
        math.exp(-0.5 * (u / 0.7) ** 2) / (0.7 * math.sqrt(2 * math.pi))
    ),
    functional.straight_through_surrogate(): lambda u: 1.0,
}


def test_formulas_and_lists_have_every_surrogate_and_its_defaults() -> None:
    public = {name for name in functional.__all__ if name.endswith("_surrogate")}
    assert {type(each).__name__ for each in FORMULAS} == set(IDS) == public
    assert {type(each)() for each in SURROGATES} == set(SURROGATES) == set(surrogates.SURROGATES)
    assert len(surrogates.SURROGATES) == len(public)


@pytest.mark.parametrize("surrogate", FORMULAS, ids=repr)
def test_derivative_matches_its_formula(surrogate: Surrogate) -> None:
    u = torch.tensor([-4.0, -0.74, -0.3, 0.0, 0.1, 0.76, 1.9, 30.0], dtype=torch.float64)
    u.requires_grad_()
    surrogate(u).sum().backward()
    expected = [FORMULAS[surrogate](value) for value in u.tolist()]
    torch.testing.assert_close(u.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_spikes_and_gradients_are_finite_in_the_input_dtype(surrogate, dtype):
    u = torch.tensor([-1e4, -3.0, -1e-7, -0.0, 0.0, 1e-7, 3.0, 1e4], dtype=dtype).requires_grad_()
    spikes = surrogate(u)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.tensor([float(v > 0) for v in u.tolist()], dtype=dtype))
    spikes.sum().backward()
    assert u.grad.dtype == dtype
    assert bool(torch.isfinite(u.grad).all())
    assert bool((u.grad >= 0).all())
    assert u.grad[4] > 0
    assert surrogate(torch.tensor([math.inf, -math.inf, math.nan])).tolist() == [1, 0, 0]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_torch_func_grad_and_vmap(surrogate: Surrogate) -> None:
    u = torch.linspace(-1, 1, 6, dtype=torch.float64)
    one_by_one = torch.stack([grad(surrogate)(value) for value in u])
    batched = vmap(grad(surrogate))(u)
    torch.testing.assert_close(batched, one_by_one)
    torch.testing.assert_close(one_by_one, surrogate.derivative(u))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_compiles_without_graph_breaks(surrogate: Surrogate) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda u: surrogate(2 * u), fullgraph=True, backend="aot_eager")
    u = torch.linspace(-1, 1, 6, requires_grad=True)
    out = compiled(u)
    out.sum().backward()
    assert torch.equal(out, (u > 0).float())
    torch.testing.assert_close(u.grad, 2 * surrogate.derivative(2 * u.detach()))
    torch.compiler.reset()


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_surrogates_pickle_hash_and_print_as_values(surrogate: Surrogate) -> None:
    copy = pickle.loads(pickle.dumps(surrogate))
    assert copy == surrogate
    assert hash(copy) == hash(surrogate)
    assert eval(repr(surrogate), vars(functional)) == surrogate


@refusals(r"""
    functional.sigmoid_surrogate(0.0) -> ValueError: sigmoid_surrogate: slope must be positive
    functional.atan_surrogate(-1) -> ValueError: alpha must be positive and finite, got -1
    functional.boxcar_surrogate(math.inf) -> ValueError: width must be positive and finite, got inf
    functional.gaussian_surrogate(10**400) -> ValueError: sigma is too large for a floating-point
    functional.triangular_surrogate(math.nan) -> ValueError: width must be positive and finite
    functional.fast_sigmoid_surrogate("2") -> TypeError: slope must be a number, got '2'
    functional.atan_surrogate(True) -> TypeError: alpha must be a number, got True
    functional.compact_support(functional.atan_surrogate(), 0) -> ValueError: width must be positive
    functional.compact_support(1.0, 2.0) -> TypeError: must be one of tt.functional.*got float
    Surrogate().derivative(X) -> NotImplementedError: Surrogate must define derivative\(u\)
""")
def test_what_is_no_surrogate_is_refused(call: str, error: str) -> None:
    check(call, error, {**globals(), "X": torch.ones(1)})


def test_second_derivative_matches_finite_differences() -> None:
    first, u = grad(functional.atan_surrogate()), torch.tensor(0.3, dtype=torch.float64)
    numeric = (first(u + 1e-6) - first(u - 1e-6)) / 2e-6
    torch.testing.assert_close(grad(first)(u), numeric, rtol=1e-6, atol=1e-8)


def test_supports_are_where_derivatives_end() -> None:
    ends = {type(each).__name__: each.support for each in surrogates.SURROGATES}
    assert {name: end for name, end in ends.items() if end is not None} == {
        "triangular_surrogate": 1.0,
        "boxcar_surrogate": 0.5,
    }
    for other in surrogates.SURROGATES:
        cut = functional.compact_support(other, 0.75)
        assert cut.support == min(0.75, other.support or 1.0)
        u = torch.tensor([-2.0, -0.76, -0.3, 0.0, 0.74, 0.75, 3.0]).requires_grad_()
        spikes = cut(u)
        assert torch.equal(spikes, other(u))
        (found,) = torch.autograd.grad(spikes.sum(), u)
        assert torch.equal(found, torch.where(u.abs() < 0.75, other.derivative(u), 0.0))
        assert bool((found[u.detach().abs() >= cut.support] == 0).all())
        assert pickle.loads(pickle.dumps(cut)) == cut == eval(repr(cut), vars(functional))


def test_compact_support_compiles_in_a_layer() -> None:
    torch.compiler.reset()
    surrogate = functional.compact_support(functional.sigmoid_surrogate(2.0), 0.5)
    layer = snn.LIF(3, surrogate_derivative=surrogate)
    x = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    run = torch.compile(lambda x: unroll(layer, x, from_rest=True), backend="eager")
    grads = [torch.autograd.grad(f.sum(), x)[0] for f in (run(x), unroll(layer, x, from_rest=True))]
    assert torch.equal(*grads)
    torch.compiler.reset()


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
        *((sigmoid_inverse, 0.3), (softplus_inverse, 0.3), (decay_to_halflife, 0.3)),
        *((halflife_to_decay, 7), (time_constant_to_decay, 7)),
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
def test_what_cannot_be_converted_is_refused(call: str, error: str) -> None:
    check(call, error, globals())
