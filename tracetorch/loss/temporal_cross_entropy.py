"""Cross entropy at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.loss.cross_entropy import per_sample
from tracetorch.loss.reduction import Reduction, check_reduction, over_neurons, reduced
from tracetorch.ragged import aligned, check_mask, check_sequence, filled, floating, lengths


def temporal_cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    mse_weight: float = 0.0,
    level: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy at every step, averaged over time: temporal efficient training (TET).

    ::

        loss = (1 - w) / T sum_t CE(output[t], target) + w / T sum_t mean_i (output[t, i] - level)²

    Every step has to answer, not only their average. With a target for each step it is the loss of
    a sequence labelled step by step.

    Args:
        output: logits at every step; the papers take what flows into the last neurons.
        target: classes or probabilities of classes, one for all steps or one for each.
        mse_weight: ``w`` of the equation, lambda in the paper, in [0, 1].
        level: what the second part keeps the output near, phi in the paper: the threshold.
        mask: ``[T, B]`` booleans, true where a step is real; other targets are not looked at.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``. Each sequence is averaged
            over its own length first.

    Shape:
        ``output`` ``[T, B, C, ...]``; ``target`` classes ``[B, ...]`` or ``[T, B, ...]``, or
        probabilities ``[B, C, ...]`` or ``[T, B, C, ...]``; a scalar, or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``mse_weight`` is outside [0, 1], shapes do not fit, a class is out of range,
            or a sequence has no real step.

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
    check_reduction(reduction)
    if not 0 <= mse_weight <= 1:
        raise ValueError(f"mse_weight must lie in [0, 1], got {mse_weight}.")
    check_sequence("output", output, batched=True)
    check_mask(mask, "output", output)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}.")
    logits = filled(floating(output), mask)
    per_step = target.ndim == logits.ndim - (not target.is_floating_point())
    if per_step and target.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"a target for each step must begin with [T, B] = {list(logits.shape[:2])}, got shape "
            f"{list(target.shape)}."
        )
    if per_step and mask is not None:
        target = target.masked_fill(~aligned(mask, target), 0)
    every = target if per_step else target.expand(len(logits), *target.shape)
    each = per_sample(logits.flatten(0, 1), every.flatten(0, 1)) * (1 - mse_weight)
    if mse_weight:
        each = each + mse_weight * over_neurons((logits.flatten(0, 1) - level).square())
    each = torch.unflatten(each, 0, logits.shape[:2])  # [T, B]
    return reduced(filled(each, mask).sum(0) / lengths(each, mask), reduction)
