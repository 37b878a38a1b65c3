"""A distance between spike trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.loss.reduction import Reduction, check_reduction, over_neurons, reduced
from tracetorch.ragged import aligned, check_mask, check_sequence, filled, floating


def van_rossum(
    spikes: Tensor,
    target: Tensor,
    tau: float,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Van Rossum's distance: every spike leaves an exponential trace; how far the traces differ.

    ::

        D² = 1 / tau ∫ (f(s) - g(s))² ds,   f(s) = sum over spikes u <= s of exp(-(s - u) / tau)

    averaged over neurons. The integral is exact, and goes on after the last step: one spike more or
    less costs 1/2 wherever it is, and so does a spike moved by ``d`` steps ``1 - exp(-d / tau)``.

    Args:
        spikes: the output.
        target: the spike trains wanted.
        tau: time constant of the trace in steps, positive; short: coincidence, long: rate.
        mask: ``[T, B]`` booleans, true where a step is real; time counts real steps.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Shape:
        ``spikes`` and ``target`` ``[T, B, ...]``; a scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``tau`` is not positive, the shapes differ, or a sequence has no real step.

    Example:
        >>> one = torch.tensor([[1.0], [0.0], [0.0]])
        >>> van_rossum(one, torch.zeros(3, 1), tau=5.0)
        tensor(0.5000)
        >>> van_rossum(one, one.roll(1, 0), tau=5.0)  # 1 - exp(-1 / 5)
        tensor(0.1813)

    Reference:
        M. C. W. van Rossum, "A novel spike distance", Neural Computation 13 (2001).

    """
    check_reduction(reduction)
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, in steps, got {tau}.")
    check_sequence("spikes", spikes, batched=True)
    check_mask(mask, "spikes", spikes)
    check_sequence("target", target, batched=True)
    if target.shape != spikes.shape:
        raise ValueError(
            f"spikes and target must have one shape, got {list(spikes.shape)} and "
            f"{list(target.shape)}."
        )
    signal = floating(spikes)
    difference = signal - target.to(signal.dtype)
    if mask is not None:
        difference = _together(filled(difference, mask), mask)
    decay = math.exp(-1 / tau)
    # within a step the trace decays, and its square integrates to tau / 2 * (1 - decay²)
    weight = (1 - decay**2) / 2
    trace = _filtered(difference, decay)
    # after the last step the geometric series of such steps sums to 1/2
    squares = weight * trace[:-1].square().sum(0) + trace[-1].square() / 2
    return reduced(over_neurons(squares), reduction)


def _together(x: Tensor, mask: Tensor) -> Tensor:
    """Real steps first, in their order, then the others: silence at the end costs nothing."""
    order = aligned((~mask).byte().argsort(stable=True, dim=0), x)
    return x.gather(0, order.expand_as(x))


def _filtered(x: Tensor, decay: float) -> Tensor:
    """``y[t] = decay * y[t - 1] + x[t]``, by doubling the window: log2(T) passes."""
    shift = 1
    while shift < len(x):
        x = torch.cat((x[:shift], x[shift:] + decay**shift * x[:-shift]))
        shift *= 2
    return x
