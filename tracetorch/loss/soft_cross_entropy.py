"""Cross entropy between two distributions of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.loss.reduction import Reduction, reduce_batch
from tracetorch.loss.targets import check_is_tensor, check_probabilities


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
