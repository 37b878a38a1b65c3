"""The van Rossum distance between spike trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.loss.reduction import Reduction, check_reduction, mean_over_neurons, reduce_batch
from tracetorch.loss.scalars import check_positive_scalar
from tracetorch.ragged import aligned, as_floating, check_mask, check_sequence, filled


def van_rossum(
    spikes: Tensor,
    target: Tensor,
    tau: float,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the van Rossum distance: the squared difference of exponentially filtered spikes.

    ::

        D² = 1 / tau ∫ (f(s) - g(s))² ds,   f(s) = sum over spikes u <= s of exp(-(s - u) / tau)

    averaged over neurons. The integral is exact, and continues after the last step: an additional
    or missing spike costs 1/2 at any step, and a spike moved by ``d`` steps ``1 - exp(-d / tau)``.

    Args:
        spikes: the output.
        target: the target spike trains.
        tau: time constant of the filter in steps, positive: a short one compares spike times, a
            long one firing rates.
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
    check_positive_scalar("tau", tau, ", in steps")
    _check_trains(spikes, target)
    check_mask(mask, "spikes", spikes)
    # the filter is linear: filter the difference once instead of both trains
    signal = as_floating(spikes)
    difference = signal - target.to(signal.dtype)
    if mask is not None:
        # time counts real steps only, so padding within a sequence must not separate its spikes
        difference = _real_steps_first(filled(difference, mask), mask)
    decay = math.exp(-1 / tau)
    # within a step the trace decays, and its square integrates to tau / 2 * (1 - decay²)
    weight = (1 - decay**2) / 2
    trace = _exponential_filter(difference, decay)
    # after the last step the geometric series of such steps sums to 1/2
    squares = weight * trace[:-1].square().sum(0) + trace[-1].square() / 2
    return reduce_batch(mean_over_neurons(squares), reduction)


def _real_steps_first(x: Tensor, mask: Tensor) -> Tensor:
    """Move the padding to the end, where it costs nothing, and keep the order of the real steps."""
    order = aligned((~mask).byte().argsort(stable=True, dim=0), x)
    return x.gather(0, order.expand_as(x))


def _exponential_filter(x: Tensor, decay: float) -> Tensor:
    """Compute ``y[t] = decay * y[t - 1] + x[t]`` in log2(T) passes."""
    # after each pass y[t] covers twice as many steps before t
    shift = 1
    while shift < len(x):
        x = torch.cat((x[:shift], x[shift:] + decay**shift * x[:-shift]))
        shift *= 2
    return x


def _check_trains(spikes: Tensor, target: Tensor) -> None:
    check_sequence("spikes", spikes, batched=True)
    check_sequence("target", target, batched=True)
    if target.shape != spikes.shape:
        raise ValueError(
            f"spikes and target must have one shape, got {list(spikes.shape)} and "
            f"{list(target.shape)}."
        )
