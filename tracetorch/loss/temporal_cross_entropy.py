"""Temporal cross entropy: the cross entropy at every step, averaged over time."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_share
from tracetorch.loss.cross_entropy import sample_cross_entropy
from tracetorch.loss.descriptions import describe_cross_entropy
from tracetorch.loss.reduction import Reduction, mean_over_neurons, reduce_batch
from tracetorch.loss.targets import check_is_tensor
from tracetorch.ragged import aligned, as_floating, check_mask, check_sequence, filled, lengths


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
