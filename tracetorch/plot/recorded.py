"""What was recorded, as arrays: a tensor ``[T, B, ...]`` or a dict of them by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.core.checks import check_integer

Recorded: TypeAlias = Tensor | Mapping[str, Tensor]
Array: TypeAlias = NDArray[Any]


def tensors(by: str, recorded: object) -> dict[str, Tensor]:
    """The tensors of a recording by path; a single tensor has the path ``""``.

    Args:
        by: who asks, as messages begin.
        recorded: a tensor ``[T, ...]`` or a dict from ``"path.name"`` to tensors of one length.

    Raises:
        TypeError: it is neither.
        ValueError: it is empty, a tensor has no time dimension or no steps, or they differ in
            length.
    """
    if isinstance(recorded, Tensor):
        found = {"": recorded}
    elif isinstance(recorded, Mapping):
        found = dict(recorded)
    else:
        raise TypeError(
            f"{by} takes a tensor [T, B, ...] or a dict of them, as tt.unroll(..., record=...) "
            f"returns it second, got {type(recorded).__name__}."
        )
    if not found:
        raise ValueError(f"{by}: the recording is empty. Name something in record=.")
    for path, value in found.items():
        told = f"{by}: {path!r}" if path else by
        if not isinstance(path, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"{by} takes a dict from names to tensors, got {type(path).__name__} {path!r} to "
                f"{type(value).__name__}."
            )
        if value.ndim == 0 or value.numel() == 0:
            raise ValueError(
                f"{told} must have time first, [T, B, ...], and hold something, got shape "
                f"{list(value.shape)}."
            )
        if value.is_complex():
            raise TypeError(f"{told} must be real, got {value.dtype}.")
    lengths = {path: len(value) for path, value in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{by}: all must have the same number of steps, got {lengths}.")
    return found


def array(value: Tensor) -> Array:
    """The values as NumPy has them: on the CPU, without graph, bool and half precision widened."""
    value = value.detach().cpu()
    wide = value.dtype in (torch.float32, torch.float64)
    return (value if wide else value.to(torch.float32)).numpy()


def one_sample(by: str, path: str, value: Tensor, sample: int | None) -> Array:
    """The trajectories of one sample, its neurons in one row.

    Args:
        by: who asks, as messages begin.
        path: of the tensor, for messages.
        value: ``[T, B, ...]``, or ``[T, ...]`` where ``sample`` is ``None``.
        sample: which of the batch; ``None`` where there is no batch.

    Shape:
        Output ``[T, N]``.

    Raises:
        TypeError: ``sample`` is not an integer.
        ValueError: there is no such sample, or no batch.
    """
    if sample is not None:
        told = f"{by}: {path!r}" if path else by
        if value.ndim < 2:
            raise ValueError(
                f"{told} has shape {list(value.shape)}, no batch [T, B, ...] to pick sample "
                f"{sample!r} from. Say sample=None."
            )
        value = value[:, index(f"{by}: sample", sample, value.shape[1])]
    return array(value).reshape(len(value), -1)


def batch_of(by: str, path: str, value: Tensor) -> Array:
    """All samples, their neurons in one row: ``[T, B, N]`` of ``[T, B, ...]``."""
    if value.ndim < 2:
        raise ValueError(
            f"{by}{f': {path!r}' if path else ''} must be [T, B, ...], got shape "
            f"{list(value.shape)}. Add the batch with [:, None]."
        )
    return array(value).reshape(*value.shape[:2], -1)


def index(name: str, value: object, size: int) -> int:
    """``value`` as an index into ``size`` things, negative ones from the end.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    place = check_integer(name, value)
    if not -size <= place < size:
        raise ValueError(f"{name} must lie in 0 to {size - 1}, got {place}.")
    return place % size


def number(value: object) -> float:
    """A number, or a tensor of one element, as a float; raises as ``float`` does."""
    return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]


def plain(by: str, value: object) -> Array:
    """Numbers as a flat float array: a tensor, an array, a list of numbers or of 0-d tensors.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(value, Tensor):
        return array(value).reshape(-1)
    try:
        items = [number(item) for item in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{by} takes numbers: a tensor, or a list of numbers, got {value!r}."
        ) from None
    return np.asarray(items, dtype=np.float64)
