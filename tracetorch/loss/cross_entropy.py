"""Cross entropy losses: of rates, counts, membranes, first spikes, every step; of probabilities."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch import decode
from tracetorch.core.checks import check_choice, check_positive, check_share
from tracetorch.core.torch_private import is_readable
from tracetorch.loss.shared import (
    Reduction,
    check_classes,
    check_is_tensor,
    check_positive_scalar,
    check_probabilities,
    describe_cross_entropy,
    holds_class_indices,
    mean_over_neurons,
    reduce_batch,
)
from tracetorch.ragged import aligned, as_floating, check_mask, check_sequence, filled, lengths


def sample_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the cross entropy ``[B]`` of logits ``[B, C, ...]``, averaged over ``...``.

    Returns:
        The losses, and what ``"mean"`` divides their sum by in place of their number, as PyTorch
        does: the weights of the target's classes, ``[B]``; ``None`` without any.
    """
    if logits.ndim < 2:
        raise ValueError(
            "cross entropy needs an output [T, B, C, ...] with a dimension of classes, the output "
            f"at one step has shape {list(logits.shape)}."
        )
    logits = as_floating(logits)
    check_share("label_smoothing", label_smoothing)
    if weight is not None:
        if is_readable(weight) and not bool(((weight >= 0) & (weight < torch.inf)).all()):
            raise ValueError("weight must be finite and not negative.")
        weight = weight.to(logits)
    weights = None
    # checked here: PyTorch ignores the index -100, and its other errors on a GPU are fatal
    if holds_class_indices(target, logits.shape):
        check_classes(target, logits.shape[1])
        target = target.long()
        weights = None if weight is None else mean_over_neurons(weight[target])
    elif target.is_floating_point():
        check_probabilities("target", target, "Class indices are integers, without that dimension.")
        target = target.to(logits.dtype)
    losses = F.cross_entropy(
        logits, target, weight, reduction="none", label_smoothing=label_smoothing
    )
    return mean_over_neurons(losses), weights


@describe_cross_entropy
def rate_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with firing rates as logits.

    ::

        loss = -log softmax(scale * rate)[target],   rate = sum_t spikes[t] / T

    Args:
        spikes: the output; a membrane gives its average over time.
        scale: steepness, positive. Rates of spikes lie in [0, 1]: with ``scale=1`` a probability
            cannot exceed ``e / (e + C - 1)``.

    Raises:
        ValueError: ``scale`` is not positive.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> rate_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(0.25 - 0.75))
        tensor(0.4741)
    """
    check_positive_scalar("scale", scale)
    logits = scale * decode.rate(spikes, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


@describe_cross_entropy
def count_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with spike counts as logits.

    ::

        loss = -log softmax(count)[target],   count = sum_t spikes[t]

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> count_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(1 - 3))
        tensor(0.1269)
    """
    logits = decode.count(spikes, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


_DECODERS = {"mean": decode.rate, "maximum": decode.maximum, "last": decode.last}


@describe_cross_entropy
def membrane_cross_entropy(
    mem: Tensor,
    target: Tensor,
    *,
    over: Literal["mean", "maximum", "last"] = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with a membrane's mean, maximum or last value as logits.

    ::

        loss = -log softmax(mean_t mem[t])[target]

    Args:
        over: the value taken over time: ``"mean"``, ``"maximum"`` or ``"last"``. A mean sends a
            gradient to every step, and is decided by all of them; a maximum by one step of each
            class.

    Shape:
        ``mem`` ``[T, B, C, ...]``; ``target`` ``[B, ...]`` or ``[B, C, ...]``; a scalar, or ``[B]``
        for ``"none"``.

    Raises:
        ValueError: ``over`` is unknown.

    Example:
        >>> mem = torch.tensor([[[0.0, 0.5]], [[2.0, 1.0]], [[1.0, 1.0]]])
        >>> membrane_cross_entropy(mem, torch.tensor([0]), over="maximum")  # log(1 + exp(1 - 2))
        tensor(0.3133)
        >>> membrane_cross_entropy(mem, torch.tensor([0]))  # log(1 + exp(5 / 6 - 1))
        tensor(0.6133)

    Reference:
        B. Cramer et al., "The Heidelberg spiking data sets for the systematic evaluation of
        spiking neural networks", IEEE TNNLS 33 (2022): max over time and last step.
    """
    check_choice("over", over, [*_DECODERS])
    logits = _DECODERS[over](mem, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


@describe_cross_entropy
def first_spike_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with negative times of first spikes as logits: the first wins.

    ::

        loss = -log softmax(-time / tau)[target]

    Args:
        spikes: the output; a neuron that stays silent has the sequence's length as its time.
        tau: scale of the differences in time, in steps; positive.

    Raises:
        ValueError: ``tau`` is not positive.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> first_spike_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(1 - 2))
        tensor(0.3133)

    Reference:
        J. Göltz et al., "Fast and energy-efficient neuromorphic deep learning with first-spike
        times", Nature Machine Intelligence 3 (2021), the loss without its regulariser.
    """
    check_positive_scalar("tau", tau)
    logits = -decode.first_spike(spikes, mask=mask) / tau
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


@describe_cross_entropy
def temporal_cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    mse_weight: float = 0.0,
    level: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy at every step, averaged: temporal efficient training (TET).

    ::

        loss = (1 - w) / T sum_t CE(output[t], target) + w / T sum_t mean_i (output[t, i] - level)²

    Every step must classify, not only the average over time. With one target per step it is the
    loss for sequences labelled step by step.

    Args:
        output: logits at every step; the paper takes the input current of the last neurons.
        target: classes or probabilities of classes, one for all steps or one for each.
        mse_weight: ``w`` of the equation, lambda in the paper, in [0, 1].
        level: value that the second term keeps the output near, phi in the paper: the threshold.
        mask: ``[T, B]`` booleans, true where a step is real; targets at padded steps are ignored.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``. Each sequence is averaged
            over its own length first.

    Shape:
        ``output`` ``[T, B, C, ...]``; ``target`` classes ``[B, ...]`` or ``[T, B, ...]``, or
        probabilities ``[B, C, ...]`` or ``[T, B, C, ...]``; a scalar, or ``[B]`` for ``"none"``.

    Raises:
        ValueError: ``mse_weight`` is outside [0, 1].

    Example:
        >>> output = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> temporal_cross_entropy(output, torch.tensor([0]))
        tensor(0.8133)
        >>> temporal_cross_entropy(output, torch.tensor([[0], [1]]))  # a class for each step
        tensor(0.3133)

    Reference:
        S. Deng et al., "Temporal efficient training of spiking neural network via gradient
        re-weighting", ICLR 2022.
    """
    check_share("mse_weight", mse_weight)
    check_sequence("output", output, batched=True)
    check_mask(mask, "output", output)
    logits = filled(as_floating(output), mask)
    folded, targets = logits.flatten(0, 1), _targets(target, logits, mask).flatten(0, 1)
    losses, weights = sample_cross_entropy(folded, targets, weight, label_smoothing)  # in one call
    shares = None if weights is None else _over_time(weights, logits, mask)
    total = (1 - mse_weight) * reduce_batch(_over_time(losses, logits, mask), reduction, shares)
    if mse_weight:
        near = _over_time(mean_over_neurons((folded - level).square()), logits, mask)
        total = total + mse_weight * reduce_batch(near, reduction)
    return total


def _over_time(folded: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Average ``[T * B]`` over the real steps of each sequence of ``logits`` ``[T, B, ...]``."""
    steps = torch.unflatten(folded, 0, logits.shape[:2])
    return filled(steps, mask).sum(0) / lengths(steps, mask)


def _targets(target: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the target of every step, ``[T, B, ...]``."""
    check_is_tensor("target", target)
    if target.ndim != logits.ndim - (not target.is_floating_point()):
        return target.expand(len(logits), *target.shape)
    if target.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"a target for each step must begin with [T, B] = {list(logits.shape[:2])}, got shape "
            f"{list(target.shape)}."
        )
    # padding may hold any class, even an invalid one such as -100
    return target if mask is None else target.masked_fill(~aligned(mask, target), 0)


def soft_cross_entropy(
    pred: Tensor, target: Tensor, eps: float = 1e-8, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the cross entropy of predicted probabilities against target probabilities.

    ``loss[b] = -sum(target[b] * log(pred[b] + eps))`` over all dimensions but the first.

    Args:
        pred: predicted probabilities (not logits).
        target: target probabilities of the same shape.
        eps: added to ``pred``, so that the logarithm and its gradient are finite at 0; positive.
        reduction: ``"mean"`` or ``"sum"`` over the first dimension, or ``"none"``.

    Shape:
        ``pred`` and ``target`` ``[B, ...]``; the result is a scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: ``pred`` is not of floating point, or ``eps`` not a number.
        ValueError: the shapes differ, a value is no probability, ``eps`` is not positive and
            finite, or ``reduction`` is unknown.

    Example:
        >>> pred = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
        >>> soft_cross_entropy(pred, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(0.3993)
    """
    check_is_tensor("pred", pred)
    check_is_tensor("target", target)
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have one shape, got {list(pred.shape)} and "
            f"{list(target.shape)}. For class indices use torch.nn.functional.one_hot."
        )
    # float16 would round 1e-8 to 0
    eps = max(check_positive("eps", eps), torch.finfo(pred.dtype).tiny)
    check_probabilities("pred", pred, "Of logits take torch.nn.functional.cross_entropy.")
    check_probabilities("target", target, "Divide counts by their sum.")
    each = -target * torch.log(pred + eps)
    per_sample = each if each.ndim == 1 else each.flatten(1).sum(1)
    return reduce_batch(per_sample, reduction)
