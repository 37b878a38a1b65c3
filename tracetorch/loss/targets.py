"""Targets: classes, probabilities of classes, or the values wanted."""

from __future__ import annotations

import torch
from torch import Tensor


def is_classes(target: Tensor, shape: torch.Size) -> bool:
    """Whether ``target`` names classes, dimension 1 of a read-out of ``shape`` ``[B, C, ...]``.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it is neither of the shape of classes, ``[B, ...]``, nor of ``shape``.

    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}.")
    counts = not target.is_floating_point() and target.dtype != torch.bool
    if len(shape) > 1 and counts and target.shape == shape[:1] + shape[2:]:
        return True
    if target.shape != shape:
        classes = f" or classes, integers {[*shape[:1], *shape[2:]]}," if len(shape) > 1 else ""
        raise ValueError(
            f"target must be of shape {list(shape)}{classes} for this output, got "
            f"{target.dtype} of shape {list(target.shape)}."
        )
    return False


def check_classes(target: Tensor, classes: int) -> None:
    """Raise ``ValueError`` where a class is out of range: PyTorch would ignore some."""
    if torch.compiler.is_compiling():  # looking at values would break a compiled graph
        return
    wrong = ((target < 0) | (target >= classes)).flatten().nonzero()
    if len(wrong):
        got = target.flatten()[int(wrong[0])].item()
        raise ValueError(f"target must name classes from 0 to {classes - 1}, got {got}.")


def wanted(
    target: Tensor, value: Tensor, correct: float | Tensor, incorrect: float | Tensor
) -> Tensor:
    """The values wanted in the place of ``value`` ``[B, C, ...]``, in its dtype.

    Args:
        target: these values, or classes ``[B, ...]``.
        value: what is read off the output.
        correct: what is wanted of the class named.
        incorrect: and of the others.

    """
    if not is_classes(target, value.shape):
        return target.to(value.dtype)
    check_classes(target, value.shape[1])
    index = torch.arange(value.shape[1], device=value.device)
    index = index.reshape(-1, *[1] * (value.ndim - 2))
    chosen = target.unsqueeze(1) == index  # [B, C, ...]
    yes, no = (
        torch.as_tensor(v, dtype=value.dtype, device=value.device) for v in (correct, incorrect)
    )
    return torch.where(chosen, yes, no)
