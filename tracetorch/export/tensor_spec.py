"""Specify a tensor's dtype, and its shape as a function of the batch size: ``TensorSpec``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The dtypes that a file may name: to look any name up in torch could give anything.
_NAMES = "float16 bfloat16 float32 float64 bool uint8 int8 int16 int32 int64"
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES.split()}
_SIZE = re.compile(r"(?:([1-9]\d{0,8})\*)?batch")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor; a size is a number, ``"batch"``, or ``"4*batch"``.

    Example:
        >>> TensorSpec(("batch", 3), "float32").sizes(8)
        (8, 3)
        >>> TensorSpec(("4*batch", 3), "float32").batch_of((32, 3))
        8
    """

    shape: tuple[int | str, ...]  # the sizes of its dimensions
    dtype: str  # PyTorch's name of the dtype, without ``torch.``

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.dtype!r} is not a dtype of {', '.join(DTYPES)}.")
        for size in self.shape:
            is_free = isinstance(size, str) and _SIZE.fullmatch(size)
            if not is_free and (type(size) is not int or size < 0):
                raise ValueError(f"{size!r} is not a size.")

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Return the shape for a batch size."""
        return tuple(_factor(s) * batch if isinstance(s, str) else s for s in self.shape)

    def batch_of(self, shape: Sequence[int]) -> int | None:
        """Return the batch size of a shape; ``None`` where it does not fit or has no batch."""
        batches: set[int] = set()
        if len(shape) != len(self.shape):
            return None
        for size, specified in zip(shape, self.shape, strict=True):
            if isinstance(specified, int):
                rest = size - specified
            else:
                batch, rest = divmod(size, _factor(specified))
                batches.add(batch)
            if rest:
                return None
        return batches.pop() if len(batches) == 1 else None

    def full(
        self, batch: int, value: Tensor | float = 0.0, device: torch.device | str | None = None
    ) -> Tensor:
        """Return a tensor of this shape and dtype for a batch size, filled with ``value``."""
        filled = torch.as_tensor(value, dtype=DTYPES[self.dtype], device=device)
        return filled.expand(self.sizes(batch)).clone(memory_format=torch.contiguous_format)

    @classmethod
    def inferred(cls, name: str, tensors: Sequence[Tensor], batches: Sequence[int]) -> TensorSpec:
        """Infer the spec of a tensor from its shapes for one batch size, which is fixed, or two."""
        shapes = [tuple(tensor.shape) for tensor in tensors]
        sizes: list[int | str] = []
        for few, many in zip(shapes[0], shapes[-1], strict=True):
            # The batch sizes are coprime: a multiple of the batch has its factor as divisor.
            factor = math.gcd(few, many)
            if few == many:
                sizes.append(few)
            elif (few, many) == (factor * batches[0], factor * batches[-1]):
                sizes.append("batch" if factor == 1 else f"{factor}*batch")
            else:
                raise ValueError(
                    f"{name} has the shapes {shapes} for batches of {list(batches)}; a size must "
                    "be fixed or a multiple of the batch."
                )
        return cls(tuple(sizes), str(tensors[0].dtype).removeprefix("torch."))

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}], {self.dtype}"


def _factor(size: str) -> int:
    match = _SIZE.fullmatch(size)
    return int(match[1] or 1) if match else 1


def initial_states(
    specs: Mapping[str, TensorSpec],
    initial: Mapping[str, Any],
    batch: int,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Return every state before the first step: what it starts from where it is not zero."""
    return {name: spec.full(batch, initial.get(name, 0.0), device) for name, spec in specs.items()}
