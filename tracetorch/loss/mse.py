"""Squared errors of rates, counts, membranes and first spikes; the van Rossum distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch import decode
from tracetorch.loss.shared import (
    Reduction,
    check_is_tensor,
    check_positive_scalar,
    describe_mse,
    holds_class_indices,
    mean_over_neurons,
    reduce_batch,
    target_values,
)
from tracetorch.ragged import (
    as_floating,
    check_mask,
    check_sequence,
    filled,
    lengths,
    real_steps_first,
)


@describe_mse
def rate_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float = 1.0,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the mean squared error of firing rates.

    ::

        loss = mean_i (rate[i] - target[i])²,   rate = sum_t spikes[t] / T

    Args:
        target: target rates, or class indices.
        correct: target rate of the named class, where ``target`` is one.
        incorrect: target rate of the other classes.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> rate_mse(spikes, torch.tensor([0]), correct=0.8, incorrect=0.2)  # (0.3² + 0.2²) / 2
        tensor(0.0650)

    Reference:
        S. B. Shrestha and G. Orchard, "SLAYER: spike layer error reassignment in time", NeurIPS
        2018: a wanted number of spikes in an interval for the class, a lower one for the others.
    """
    value = decode.rate(spikes, mask=mask)
    error = value - target_values(target, value, correct, incorrect)
    return reduce_batch(mean_over_neurons(error.square()), reduction)


@describe_mse
def count_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float | None = None,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the mean squared error of spike counts.

    ::

        loss = mean_i (count[i] - target[i])²,   count = sum_t spikes[t]

    Args:
        target: target counts, or class indices.
        correct: target count of the named class, where ``target`` is one; ``None``: a spike at
            every step.
        incorrect: target count of the other classes.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
        >>> count_mse(spikes, torch.tensor([0]))  # ((2 - 3)² + 1²) / 2
        tensor(1.)

    Reference:
        As :func:`rate_mse`.
    """
    value = decode.count(spikes, mask=mask)
    # a spike at every step is the highest count there is
    high = lengths(spikes, mask) if correct is None else correct
    error = value - target_values(target, value, high, incorrect)
    return reduce_batch(mean_over_neurons(error.square()), reduction)


@describe_mse
def membrane_mse(
    mem: Tensor,
    target: Tensor,
    *,
    correct: float = 1.0,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the mean squared error of a membrane, or of any other output, at every step.

    ::

        loss = 1 / T sum_t mean_i (mem[t, i] - target[t, i])²

    Args:
        target: the target trajectory; target values for every step; or class indices.
        correct: target value of the named class at every step, where ``target`` is one.
        incorrect: target value of the other classes.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``. Each sequence is averaged
            over its own length first.

    Shape:
        ``mem`` ``[T, B, N, ...]``; ``target`` ``[T, B, N, ...]`` or ``[B, N, ...]``, or integers
        ``[B, ...]``; a scalar, or ``[B]`` for ``"none"``.

    Example:
        >>> mem = torch.tensor([[[0.0]], [[0.5]], [[1.0]]])
        >>> membrane_mse(mem, torch.ones(3, 1, 1))  # (1 + 0.25 + 0) / 3
        tensor(0.4167)
    """
    check_sequence("mem", mem, batched=True)
    check_mask(mask, "mem", mem)
    value = as_floating(mem)
    if isinstance(target, Tensor) and target.ndim == mem.ndim:
        holds_class_indices(target, mem.shape)  # raises where the shapes differ
        expected = filled(target.to(value.dtype), mask)
    else:
        expected = target_values(target, value[0], correct, incorrect)
    # time is folded into the batch, so that neurons are averaged for every step of every sample
    error = (filled(value, mask) - expected).square().flatten(0, 1)
    losses = torch.unflatten(mean_over_neurons(error), 0, mem.shape[:2])  # [T, B]
    return reduce_batch(filled(losses, mask).sum(0) / lengths(losses, mask), reduction)


@describe_mse
def first_spike_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float = 0.0,
    incorrect: float | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the mean squared error of the times of the first spikes, in steps.

    ::

        loss = mean_i (time[i] - target[i])²

    Args:
        spikes: the output; a neuron that stays silent has the sequence's length as its time.
        target: target times, or class indices.
        correct: target time of the named class, where ``target`` is one.
        incorrect: target time of the other classes; ``None``: the sequence's length, no spike.
        mask: ``[T, B]`` booleans, true where a step is real; time counts real steps.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> first_spike_mse(spikes, torch.tensor([0]))  # ((1 - 0)² + (2 - 3)²) / 2
        tensor(1.)

    Reference:
        S. M. Bohte, J. N. Kok and H. La Poutré, "Error-backpropagation in temporally encoded
        networks of spiking neurons", Neurocomputing 48 (2002).
    """
    value = decode.first_spike(spikes, mask=mask)
    # the time of a neuron without a spike
    silent = lengths(spikes, mask) if incorrect is None else incorrect
    error = value - target_values(target, value, correct, silent)
    return reduce_batch(mean_over_neurons(error.square()), reduction)


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
