"""From one loss per sample to what is asked for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(reduction: object) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of the three."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")


def reduced(per_sample: Tensor, reduction: Reduction) -> Tensor:
    """``per_sample`` ``[B]``, its mean or its sum."""
    if reduction == "mean":
        return per_sample.mean()
    return per_sample.sum() if reduction == "sum" else per_sample


def over_neurons(each: Tensor) -> Tensor:
    """The mean over all dimensions but the batch: ``[B, ...]`` to ``[B]``."""
    return each if each.ndim == 1 else each.flatten(1).mean(1)
