"""Check recordings and convert them to arrays: a tensor ``[T, B, ...]``, or a dict by path."""

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


def check_recording(caller: str, recorded: object) -> dict[str, Tensor]:
    """Check a recording of ``caller``; return its tensors by path, that of a single one ``""``."""
    tensors = {"": recorded} if isinstance(recorded, Tensor) else recorded
    if not isinstance(tensors, Mapping) or not all(
        isinstance(path, str) and isinstance(value, Tensor) for path, value in tensors.items()
    ):
        raise TypeError(
            f"{caller} takes a tensor [T, B, ...] or a dict from names to tensors, as "
            f"tt.unroll(..., record=...) returns it second, got {type(recorded).__name__}."
        )
    if not tensors:
        raise ValueError(f"{caller}: the recording is empty. Name something in record=.")
    for path, value in tensors.items():
        if value.ndim == 0 or value.numel() == 0 or value.is_complex():
            raise ValueError(
                f"{_name(caller, path)} must have time first, [T, B, ...], and hold real numbers, "
                f"got {value.dtype} {list(value.shape)}."
            )
    lengths = {path: len(value) for path, value in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{caller}: all tensors must have the same number of steps, got {lengths}."
        )
    return dict(tensors)


def to_numpy(value: Tensor) -> Array:
    """Convert to NumPy: copied to the CPU, detached, bool and half precision as float32."""
    value = value.detach().cpu()
    wide = value.dtype in (torch.float32, torch.float64)
    return (value if wide else value.to(torch.float32)).numpy()


def select_sample(caller: str, path: str, value: Tensor, sample: int | None) -> Array:
    """Select one sample of ``[T, B, ...]``, or none of ``[T, ...]``; flatten it to ``[T, N]``."""
    if sample is not None:
        # in [T, N] the neurons would be taken for samples, and one of them be drawn as all
        _check_batch(caller, path, value, "Pass sample=None if there is no batch, [T, N]")
        value = value[:, check_index(f"{caller}: sample", sample, value.shape[1])]
    return to_numpy(value).reshape(len(value), -1)


def flatten_neurons(caller: str, path: str, value: Tensor) -> Array:
    """Flatten the neurons of all samples to ``[T, B, N]``; raise where batch or neurons lack."""
    _check_batch(caller, path, value, "Add the batch with [:, None] to one sample, [T, N]")
    return to_numpy(value).reshape(*value.shape[:2], -1)


def _check_batch(caller: str, path: str, value: Tensor, hint: str) -> None:
    if value.ndim < 3:
        raise ValueError(
            f"{_name(caller, path)} must be [T, B, ...], got shape {list(value.shape)}, without "
            f"batch or without neurons. {hint}; add the neurons with [..., None] to [T, B]."
        )


def check_index(name: str, value: object, size: int) -> int:
    """Check an index into ``size`` items, and return it without a negative sign."""
    index = check_integer(name, value)
    if not -size <= index < size:
        raise ValueError(f"{name} must lie in 0 to {size - 1}, got {index}.")
    return index % size


def flat_numbers(value: Any) -> Array:
    """Convert a tensor, an array, or a list of numbers or 0-d tensors to a flat float array."""
    if isinstance(value, Tensor):
        return to_numpy(value).reshape(-1)
    items = [float(v.detach() if isinstance(v, Tensor) else v) for v in value]
    return np.asarray(items, dtype=np.float64)


def _name(caller: str, path: str) -> str:
    """Name a tensor in a message: the function alone where it was passed without a dict."""
    return f"{caller}: {path!r}" if path else caller
