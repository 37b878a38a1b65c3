from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.ragged import masks, padded_with_nan, single_sequences
from tracetorch import decode

DECODERS = [getattr(decode, name) for name in decode.__all__]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_spikes(*shape: int, seed: int = 0) -> Tensor:
    """Draw spikes of both signs, mostly silent."""
    x = normal(*shape, seed=seed)
    return (x > 0.8).double() - (x < -1.2).double()


def test_small_cases_exactly() -> None:
    x = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]], [[0.0, -1.0]], [[0.0, 1.0]]])  # [4, 1, 2]
    assert decode.count(x).tolist() == [[0.0, 1.0]]
    assert decode.rate(x).tolist() == [[0.0, 0.25]]
    assert decode.first_spike(x).tolist() == [[4.0, 1.0]]
    assert decode.last(x).tolist() == [[0.0, 1.0]]
    assert decode.maximum(-x - 2).tolist() == [[-2.0, -1.0]]
    x = torch.tensor([[0.0, 0.0, 0.3], [-1.0, 0.0, 0.0], [1.0, -0.2, 0.0]])
    assert decode.first_spike(x).tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("decoder", DECODERS)
@settings(deadline=None)
@given(mask=masks())
def test_masked_sequences_decode_like_unpadded_ones(decoder: Any, mask: Tensor) -> None:
    x = random_spikes(*mask.shape, 3) + (0 if decoder is decode.first_spike else normal(3))
    whole = padded_with_nan(x, mask).requires_grad_()
    together = decoder(whole, mask=mask)
    weights = normal(*together.shape, seed=1)
    (grad,) = torch.autograd.grad((together * weights).sum(), whole)
    for b, own in enumerate(single_sequences(x, mask)):
        own.requires_grad_()
        expected = decoder(own)[0]
        torch.testing.assert_close(together[b], expected)
        (own_grad,) = torch.autograd.grad((expected * weights[b]).sum(), own)
        torch.testing.assert_close(grad[mask[:, b], b], own_grad[:, 0])
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


@settings(deadline=None)
@given(mask=masks())
def test_first_spike_gradient_is_the_change_by_an_additional_spike(mask: Tensor) -> None:
    x = random_spikes(*mask.shape, 2, seed=int(mask.sum())).abs().requires_grad_()
    time = decode.first_spike(x, mask=mask)
    (grad,) = torch.autograd.grad(time.sum(), x)
    for index in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        on, off = x.detach().clone(), x.detach().clone()
        on[tuple(index)], off[tuple(index)] = 1.0, 0.0
        change = decode.first_spike(on, mask=mask) - decode.first_spike(off, mask=mask)
        assert grad[tuple(index)] == change.sum()


@pytest.mark.parametrize("decoder", [decode.count, decode.rate, decode.last, decode.maximum])
def test_gradients_match_finite_differences(decoder: Any) -> None:
    mask = torch.tensor([[True, True], [False, True], [True, False]])
    assert torch.autograd.gradcheck(
        lambda x: decoder(x, mask=mask), normal(3, 2, 2).requires_grad_()
    )


def test_equal_maxima_share_the_gradient_and_negative_spikes_have_the_opposite() -> None:
    for decoder, values, expected in (
        (decode.maximum, [1.0, 1.0], [0.5, 0.5]),
        (decode.first_spike, [0.0, -1.0, 0.0, 1.0], [-1.0, 2.0, 0.0, 0.0]),
    ):
        x = torch.tensor(values, requires_grad=True)
        decoder(x).backward()
        assert x.grad.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16])
def test_counts_are_not_limited_by_half_precision(dtype: torch.dtype) -> None:
    spikes = torch.ones(2049, 1, dtype=dtype)
    for value, expected in (
        (decode.count(spikes), 2049.0),
        (decode.rate(spikes), 1.0),
        (decode.first_spike(torch.zeros_like(spikes)), 2049.0),
    ):
        assert value.dtype == torch.float32
        assert value.item() == expected
    assert decode.last(spikes).dtype == dtype


def test_shapes_and_dtypes_of_inputs() -> None:
    for decoder in DECODERS:
        assert decoder(torch.rand(5)).shape == ()
        assert decoder(torch.rand(5, 2, 3, 4)).shape == (2, 3, 4)
    with pytest.raises(TypeError, match=r"tensor, got torch.int64. Convert with .float"):
        decode.maximum(torch.ones(2, 1, dtype=torch.int64))
