"""Decode the time of the first spike."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.decode.descriptions import describe_decoder
from tracetorch.ragged import aligned, as_floating, check_mask, check_sequence


def magnitude(spikes: Tensor) -> Tensor:
    """Compute ``|spikes|`` with the slope 1 at 0, so that silent steps have a gradient."""
    return torch.where(spikes < 0, -spikes, spikes)


@describe_decoder
def first_spike(spikes: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the time of the first spike, in steps from 0; the length where there is none.

    The time is the number of steps before the first spike::

        time = sum_t prod_(u <= t) (1 - fired[u]),   fired = 1 where spikes != 0

    It is differentiable: ``fired`` passes the gradient on to the spikes. For spikes of 0 and 1 the
    gradient at a step is *exactly* the change of the time that a spike at this step causes:
    ``k - time`` at a silent step ``k`` before the first spike, 0 after it, and at the first spike
    minus the number of steps until the next one.

    Args:
        spikes: every value but 0 counts as a spike, negative ones too.
        mask: ``[T, B]`` booleans, true where a step is real; time counts real steps.

    Shape:
        ``[T, B, ...]`` to ``[B, ...]``, in steps; float32 for half precision.

    Example:
        >>> spikes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> first_spike(spikes)
        tensor([1., 3.])

    Reference:
        The product is the survival function of discrete time, as in D. R. Cox, "Regression models
        and life-tables", JRSS B 34 (1972), section 6.
    """
    check_sequence("spikes", spikes)
    check_mask(mask, "spikes", spikes)
    signal = as_floating(spikes)
    size = magnitude(signal)
    # straight through: 0 or 1 forward, the gradient of the spike's size backward
    fired = (signal != 0).to(signal.dtype) + (size - size.detach())
    if mask is None:
        return (1 - fired).cumprod(0).sum(0)
    real = aligned(mask, signal)
    # padding keeps the product, and adds no step to the sum
    silent = (1 - fired).masked_fill(~real, 1.0).cumprod(0)
    return silent.masked_fill(~real, 0.0).sum(0)
