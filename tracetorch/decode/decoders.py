"""Decode rates, counts, first spikes, and the last or maximum value of a membrane."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.ragged import aligned, as_floating, check_mask, check_sequence, filled, lengths

describe_decoder = SharedDescriptions(
    {"mask": "``[T, B]`` booleans, true where a step is real."},
    "``[T, B, ...]`` to ``[B, ...]``.",
    {
        "TypeError": "an argument is not a tensor of the right kind.",
        "ValueError": "they do not fit, or a sequence has no real step.",
    },
)


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


@describe_decoder
def last(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the value at the last real step.

    Args:
        x: a membrane, or any other signal.

    Example:
        >>> mem = torch.tensor([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7]])
        >>> last(mem, mask=torch.tensor([[True, True], [True, True], [True, False]]))
        tensor([0.3000, 0.6000])
    """
    check_sequence("x", x)
    check_mask(mask, "x", x)
    if mask is None:
        return x[-1]
    # argmax returns the first of several maxima: in reversed time the last real step
    steps = len(mask) - 1 - mask.flip(0).byte().argmax(0)
    return x[steps, torch.arange(x.shape[1], device=x.device)]


@describe_decoder
def maximum(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the maximum over the real steps; equal maxima share the gradient.

    Args:
        x: a membrane, or any other signal.

    Example:
        >>> mem = torch.tensor([[0.1, 0.5], [0.9, 0.6], [0.3, 0.7]])
        >>> maximum(mem)
        tensor([0.9000, 0.7000])

    Reference:
        B. Cramer et al., "The Heidelberg spiking data sets for the systematic evaluation of
        spiking neural networks", IEEE TNNLS 33 (2022): classification by the maximum over time.
    """
    check_sequence("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}. Convert with .float().")
    check_mask(mask, "x", x)
    # amax shares the gradient among equal maxima; max would give it to one of them
    return filled(x, mask, -torch.inf).amax(0)
