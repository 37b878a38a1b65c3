"""Reduce losses over neurons and over the batch, and check their scales."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def reduce_batch(per_sample: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    """Reduce the losses of the samples, ``[B]``: take their mean, their sum, or leave them.

    ``weights`` ``[B]`` is what the mean divides the sum by in place of their number.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
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
