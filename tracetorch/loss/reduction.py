"""Reduce losses over neurons and over the batch, and check their scales."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from tracetorch.core.checks import check_choice

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def reduce_batch(per_sample: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    """Reduce losses ``[B]``: sum, none, or a mean, over the sum of ``weights`` if there are any."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "mean":
        return per_sample.mean() if weights is None else per_sample.sum() / weights.sum()
    return per_sample.sum() if reduction == "sum" else per_sample


def mean_over_neurons(loss: Tensor) -> Tensor:
    """Take the mean over all dimensions but the batch: ``[B, ...]`` to ``[B]``."""
    return loss if loss.ndim == 1 else loss.flatten(1).mean(1)


def check_positive_scalar(name: str, value: float | Tensor) -> None:
    """Raise ``ValueError`` unless a number, or a tensor of one that is learned, is positive."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
