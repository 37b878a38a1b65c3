"""Sequences of unequal length in one tensor: which steps are real.

One convention for decoders, losses and metrics: a sequence is ``[T, B, ...]``, and ``mask``
``[T, B]`` is true where a step is real. A result is what each sequence would give if the steps that
are not real were cut out of it, whatever they hold, NaN included. Padding may stand anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_sequence(name: str, x: Tensor, *, batched: bool = False) -> None:
    """Check that ``x`` is a tensor over time.

    Args:
        name: how messages call it.
        x: a tensor ``[T, ...]``.
        batched: it must have a batch dimension too, ``[T, B, ...]``.

    Raises:
        TypeError: ``x`` is not a tensor, or a complex one.
        ValueError: it lacks a dimension, or has no step.

    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(x).__name__}. Wrap arrays in torch.as_tensor(...)."
        )
    if x.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {x.dtype}.")
    if x.ndim < 1 + batched:
        wanted = "[T, B, ...]" if batched else "[T, ...]"
        raise ValueError(f"{name} must have the shape {wanted}, time first, got {list(x.shape)}.")
    if len(x) == 0:
        raise ValueError(f"{name} needs at least one time step, got shape {list(x.shape)}.")


def check_mask(mask: Tensor | None, name: str, x: Tensor) -> None:
    """Check that ``mask`` tells for each step of ``x`` whether it is real.

    Args:
        mask: ``[T, B]`` booleans, true where real; ``None``: all steps are.
        name: how messages call ``x``.
        x: a tensor ``[T, B, ...]``.

    Raises:
        TypeError: ``mask`` is not a tensor of booleans.
        ValueError: it has another shape or device than ``x``, or a sequence has no real step.

    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a tensor of booleans [T, B], True where a step is real, got {got}. From "
            "lengths: torch.arange(T)[:, None] < lengths."
        )
    if x.ndim < 2 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must have the shape [T, B] of {name}, whose shape is {list(x.shape)}, got "
            f"{list(mask.shape)}."
        )
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, {name} on {x.device}. Move one of them.")
    # looking at values would break a compiled graph
    if not torch.compiler.is_compiling():
        empty = (~mask.any(0)).nonzero()
        if len(empty):
            raise ValueError(
                f"mask: sequence {int(empty[0])} of the batch has no real step. Leave it out of "
                "the batch."
            )


def aligned(mask: Tensor, x: Tensor) -> Tensor:
    """``mask`` ``[T, B]`` with as many dimensions as ``x`` ``[T, B, ...]``."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))


def filled(x: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """``x`` ``[T, B, ...]`` with ``value`` where a step is not real; no gradient flows there."""
    return x if mask is None else x.masked_fill(~aligned(mask, x), value)


def lengths(x: Tensor, mask: Tensor | None) -> Tensor:
    """The number of real steps, in a shape to divide ``x[0]`` by: ``[B, 1, ...]`` or ``[]``."""
    if mask is None:
        return torch.tensor(len(x), device=x.device)
    return aligned(mask, x).sum(0)


def floating(x: Tensor) -> Tensor:
    """``x`` in a dtype that can count: float32 for half precision, the default for integers."""
    if not x.is_floating_point():
        return x.to(torch.get_default_dtype())
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
