"""The van Rossum distance between spike trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.loss.reduction import (
    Reduction,
    check_positive_scalar,
    mean_over_neurons,
    reduce_batch,
)
from tracetorch.loss.targets import check_is_tensor
from tracetorch.ragged import as_floating, check_mask, check_sequence, filled, real_steps_first


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
    check_positive_scalar("tau", tau)
    check_sequence("spikes", spikes, batched=True)
    check_is_tensor("target", target)
    if target.shape != spikes.shape:
        raise ValueError(
            f"spikes and target must have one shape, got {list(spikes.shape)} and "
            f"{list(target.shape)}."
        )
    check_mask(mask, "spikes", spikes)
    # the filter is linear: filter the difference once instead of both trains
    signal = as_floating(spikes)
    trace = signal - target.to(signal.dtype)
    if mask is not None:
        # time counts real steps only, so padding within a sequence must not separate its spikes;
        # at the end it costs nothing
        trace = real_steps_first(filled(trace, mask), mask)
    decay = math.exp(-1 / tau)
    # y[t] = decay * y[t - 1] + x[t]: after each pass y[t] covers twice as many steps before t
    shift = 1
    while shift < len(trace):
        trace = torch.cat((trace[:shift], trace[shift:] + decay**shift * trace[:-shift]))
        shift *= 2
    # within a step the trace decays, and its square integrates to tau / 2 * (1 - decay²)
    weight = (1 - decay**2) / 2
    # after the last step the geometric series of such steps sums to 1/2
    squares = weight * trace[:-1].square().sum(0) + trace[-1].square() / 2
    return reduce_batch(mean_over_neurons(squares), reduction)
