"""The checks and the effect of a mask, as the decoders use them."""

import pytest
import torch
from hypothesis import given, settings

from tests.ragged import masks
from tests.refusals import check, refusals
from tracetorch import decode, ragged

X, LEFT = torch.zeros(3, 2, 4), torch.tensor([[True, False]] * 3)


@pytest.mark.parametrize("decoder", [getattr(decode, name) for name in decode.__all__])
@refusals(
    r"""
    decoder([1.0]) -> TypeError: be a tensor, got list. Give one of real numbers, torch.as_tensor
    decoder(torch.zeros(2).cfloat()) -> TypeError: got torch.complex64. Give one of real numbers
    decoder(torch.tensor(1.0)) -> ValueError: shape \[T, ...\], time first, got \[\]
    decoder(torch.zeros(0, 2)) -> ValueError: at least one time step, got shape \[0, 2\]
    decoder(X, mask=torch.ones(3, 2)) -> TypeError: booleans \[T, B\], True .* got torch.float32
    decoder(X, mask=[True]) -> TypeError: booleans .* got list. From lengths: torch.arange
    decoder(X, mask=torch.ones(2, 3).bool()) -> ValueError: shape is \[3, 2, 4\], got \[2, 3\]
    decoder(X[:, 0, 0], mask=torch.ones(3, 1).bool()) -> ValueError: shape is \[3\], got \[3, 1\]
    decoder(X, mask=LEFT) -> ValueError: sequence 1 of .* real step\. Leave it out.* True .*~mask
    """
)
def test_sequence_or_mask_that_does_not_fit_is_named_in_the_error(decoder, call, error):
    check(call, error, {**globals(), "decoder": decoder})


def test_batch_dimension_is_required_when_batched() -> None:
    with pytest.raises(ValueError, match=r"x must have the shape \[T, B, ...\], .* got \[2\]"):
        ragged.check_sequence("x", torch.zeros(2), batched=True)


@settings(deadline=None)
@given(masks())
def test_filled_steps_and_lengths_count_real_steps(mask: torch.Tensor) -> None:
    x = torch.full((*mask.shape, 2), torch.nan)
    x[mask] = 1.0
    total = ragged.filled(x, mask).sum(0)
    assert torch.equal(total, ragged.lengths(x, mask).expand_as(total).float())
    assert torch.equal(ragged.lengths(x, mask)[:, 0], mask.sum(0))


def test_real_steps_first_and_a_compiled_decoder() -> None:
    spikes, mask = torch.rand(4, 3, 2).round(), torch.arange(4)[:, None] < torch.tensor([1, 4, 2])
    compiled = torch.compile(decode.rate, fullgraph=True, backend="eager")
    assert torch.equal(compiled(spikes, mask=mask), decode.rate(spikes, mask=mask))
    x = torch.tensor([[1.0, torch.nan], [torch.nan, 5.0], [3.0, 6.0], [4.0, torch.nan]])
    found = ragged.real_steps_first(x[..., None], ~x.isnan())
    assert found.squeeze(-1).t().tolist() == [[1, 3, 4, 0], [5, 6, 0, 0]]
