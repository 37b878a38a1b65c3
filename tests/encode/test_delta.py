from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tracetorch import encode


def test_small_signal_exactly_with_and_without_nan_behind() -> None:
    x = torch.tensor([0.0, 1.0, 1.5, 2.0, 0.9, 1.8, -9.0])
    spikes = encode.delta(x, 1.0, dim=1)
    assert spikes[:, 0].tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert spikes[:, 1].tolist() == [0, 0, 0, 0, 1, 0, 1]
    assert encode.delta(x, 1.0, start=-1.0, dim=1)[:, 0].tolist() == [1, 1, 0, 1, 0, 0, 0]
    x = torch.tensor([0.0, 1.0, torch.nan, torch.nan, 2.0])
    assert encode.delta(x, 1.0, dim=1)[:, 0].tolist() == [0, 1, 0, 0, 1]
    assert encode.delta(torch.tensor([torch.nan, 1.0]), 1.0, start=0.0, dim=1).sum() == 1


@settings(deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.integers(1, 8),
    st.none() | st.integers(-5, 5),
)
def test_reference_stays_within_the_threshold_of_the_signal(values, threshold, start) -> None:
    on, off = encode.delta(torch.tensor(values).double(), threshold, start=start, dim=1).unbind(1)
    reference = values[0] if start is None else start
    for value, up, down in zip(values, on.tolist(), off.tolist(), strict=True):
        assert up == (value - reference >= threshold)
        assert down == (reference - value >= threshold)
        reference = value if up or down else reference
        assert abs(value - reference) < threshold


def test_values_are_not_looked_at_where_there_are_none() -> None:
    x = torch.rand(3, 9, 2)

    def encoded(each: Tensor) -> Tensor:
        return encode.delta(each, 0.1)

    expected = torch.stack([encoded(each) for each in x])
    assert torch.equal(torch.func.vmap(encoded)(x), expected)
    assert torch.equal(make_fx(encoded)(x[1])(x[0]), expected[0])
    with FakeTensorMode():
        assert encoded(torch.rand(9, 2)).shape == (9, 2, 2)


def test_channels_are_in_dimension_dim() -> None:
    x = torch.randn(9, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    spikes = encode.delta(x, 0.5)
    assert spikes.shape == (9, 2, 2, 3, 4)
    for dim, moved in ((1, (9, 2, 2, 3, 4)), (4, (9, 2, 3, 4, 2)), (-1, (9, 2, 3, 4, 2))):
        other = encode.delta(x, 0.5, dim=dim)
        assert other.shape == moved
        assert torch.equal(other.movedim(dim, 2), spikes)
    assert encode.delta(x[:, :, 0, 0], 0.5).shape == (9, 2, 2)
    start = torch.full((2, 3, 4), 100.0)
    assert bool((encode.delta(x, 0.5, start=start)[0, :, 1] == 1).all())
