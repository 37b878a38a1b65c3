"""Squared error of what is read off the output: rate, count, membrane, time."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch import decode
from tracetorch.loss.reduction import Reduction, check_reduction, over_neurons, reduced
from tracetorch.loss.targets import is_classes, wanted
from tracetorch.ragged import check_mask, check_sequence, filled, floating, lengths


def rate_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float = 1.0,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of the rates.

    ::

        loss = mean_i (rate[i] - target[i])²,   rate = sum_t spikes[t] / T

    Args:
        spikes: the output.
        target: the rates wanted, or classes.
        correct: the rate wanted of the class, where ``target`` is one.
        incorrect: the rate wanted of the other classes.
        mask: ``[T, B]`` booleans, true where a step is real.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Shape:
        ``spikes`` ``[T, B, N, ...]``; ``target`` ``[B, N, ...]``, or integers ``[B, ...]``; a
        scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit, a class is out of range, or a sequence has no real step.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> rate_mse(spikes, torch.tensor([0]), correct=0.8, incorrect=0.2)  # (0.3² + 0.2²) / 2
        tensor(0.0650)

    Reference:
        S. B. Shrestha and G. Orchard, "SLAYER: spike layer error reassignment in time", NeurIPS
        2018: a wanted number of spikes in an interval for the class, a lower one for the others.

    """
    check_reduction(reduction)
    check_sequence("spikes", spikes, batched=True)
    value = decode.rate(spikes, mask=mask)
    error = value - wanted(target, value, correct, incorrect)
    return reduced(over_neurons(error.square()), reduction)


def count_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float | None = None,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of the numbers of spikes.

    ::

        loss = mean_i (count[i] - target[i])²,   count = sum_t spikes[t]

    Args:
        spikes: the output.
        target: the counts wanted, or classes.
        correct: the count wanted of the class, where ``target`` is one; ``None``: a spike at
            every step.
        incorrect: the count wanted of the other classes.
        mask: ``[T, B]`` booleans, true where a step is real.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Shape:
        ``spikes`` ``[T, B, N, ...]``; ``target`` ``[B, N, ...]``, or integers ``[B, ...]``; a
        scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit, a class is out of range, or a sequence has no real step.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
        >>> count_mse(spikes, torch.tensor([0]))  # ((2 - 3)² + 1²) / 2
        tensor(1.)

    Reference:
        S. B. Shrestha and G. Orchard, "SLAYER: spike layer error reassignment in time", NeurIPS
        2018: a wanted number of spikes in an interval for the class, a lower one for the others.

    """
    check_reduction(reduction)
    check_sequence("spikes", spikes, batched=True)
    value = decode.count(spikes, mask=mask)
    every = lengths(spikes, mask) if correct is None else correct
    error = value - wanted(target, value, every, incorrect)
    return reduced(over_neurons(error.square()), reduction)


def membrane_mse(
    mem: Tensor,
    target: Tensor,
    *,
    correct: float = 1.0,
    incorrect: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of a membrane, or of any other output, at every step.

    ::

        loss = 1 / T sum_t mean_i (mem[t, i] - target[t, i])²

    Args:
        mem: the membrane, the output of a readout.
        target: the trajectory wanted; the values wanted at every step; or classes.
        correct: the value wanted of the class at every step, where ``target`` is one.
        incorrect: the value wanted of the other classes.
        mask: ``[T, B]`` booleans, true where a step is real.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``. Each sequence is averaged
            over its own length first.

    Shape:
        ``mem`` ``[T, B, N, ...]``; ``target`` ``[T, B, N, ...]`` or ``[B, N, ...]``, or integers
        ``[B, ...]``; a scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit, a class is out of range, or a sequence has no real step.

    Example:
        >>> mem = torch.tensor([[[0.0]], [[0.5]], [[1.0]]])
        >>> membrane_mse(mem, torch.ones(3, 1, 1))  # (1 + 0.25 + 0) / 3
        tensor(0.4167)

    """
    check_reduction(reduction)
    check_sequence("mem", mem, batched=True)
    check_mask(mask, "mem", mem)
    value = floating(mem)
    if isinstance(target, Tensor) and target.ndim == mem.ndim:
        is_classes(target, mem.shape)  # raises where the shape is another
        aim = filled(target.to(value.dtype), mask)
    else:
        aim = wanted(target, value[0], correct, incorrect)
    error = (filled(value, mask) - aim).square().flatten(0, 1)
    each = torch.unflatten(over_neurons(error), 0, mem.shape[:2])
    return reduced(filled(each, mask).sum(0) / lengths(each, mask), reduction)


def first_spike_mse(
    spikes: Tensor,
    target: Tensor,
    *,
    correct: float = 0.0,
    incorrect: float | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of the times to the first spike, in steps.

    ::

        loss = mean_i (time[i] - target[i])²

    Args:
        spikes: the output; a neuron that stays silent has the sequence's length as its time.
        target: the times wanted, or classes.
        correct: the time wanted of the class, where ``target`` is one.
        incorrect: the time wanted of the other classes; ``None``: they should stay silent.
        mask: ``[T, B]`` booleans, true where a step is real; time counts real steps.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Shape:
        ``spikes`` ``[T, B, N, ...]``; ``target`` ``[B, N, ...]``, or integers ``[B, ...]``; a
        scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit, a class is out of range, or a sequence has no real step.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> first_spike_mse(spikes, torch.tensor([0]))  # ((1 - 0)² + (2 - 3)²) / 2
        tensor(1.)

    Reference:
        S. M. Bohte, J. N. Kok and H. La Poutré, "Error-backpropagation in temporally encoded
        networks of spiking neurons", Neurocomputing 48 (2002).

    """
    check_reduction(reduction)
    check_sequence("spikes", spikes, batched=True)
    value = decode.first_spike(spikes, mask=mask)
    silent = lengths(spikes, mask) if incorrect is None else incorrect
    error = value - wanted(target, value, correct, silent)
    return reduced(over_neurons(error.square()), reduction)
