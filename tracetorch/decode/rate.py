"""Decode spike counts and firing rates."""

from __future__ import annotations

from torch import Tensor

from tracetorch.decode.descriptions import describe_decoder
from tracetorch.ragged import as_floating, check_mask, check_sequence, filled, lengths


@describe_decoder
def count(spikes: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Count the spikes: the sum over time.

    ::

        count = sum_t spikes[t]

    Spikes of opposite sign cancel: pass ``spikes.abs()`` to count them all.

    Args:
        spikes: spikes, or any other signal; booleans and integers are allowed.

    Shape:
        ``[T, B, ...]`` to ``[B, ...]``; float32 for half precision, which cannot count beyond 2048.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
        >>> count(spikes)
        tensor([[3., 1.]])
        >>> count(spikes, mask=torch.tensor([[True], [True], [False]]))
        tensor([[2., 0.]])
    """
    check_sequence("spikes", spikes)
    check_mask(mask, "spikes", spikes)
    # converted before the sum: half precision is exact to 2048 only
    return filled(as_floating(spikes), mask).sum(0)


@describe_decoder
def rate(spikes: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the firing rate: the mean over time, in spikes per step.

    ::

        rate = sum_t spikes[t] / T,   T the length of the sequence without padding

    Args:
        spikes: spikes, or a membrane to average; booleans and integers are allowed.

    Shape:
        ``[T, B, ...]`` to ``[B, ...]``; float32 for half precision.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
        >>> rate(spikes)
        tensor([[0.7500, 0.2500]])
    """
    return count(spikes, mask=mask) / lengths(spikes, mask)
