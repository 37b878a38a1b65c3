"""Symbolic sizes: what a step that is traced is told of the sizes of its tensors.

A size may make other tensors and be compared with itself; whoever computes with it, or branches on
it, reads a number that is another at the next call. PyTorch's own symbolic shapes take longer to
import than to trace.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
from torch import Tensor

from tracetorch.fuse.ir.graph import Unfusable

READS_SIZES = "its step reads the size of its input"
_INTERNAL = ("torch", "tracetorch.core", "tracetorch.fuse")


class _Node:
    """What PyTorch's C++ holds of a size, and passes on."""

    def is_int(self) -> bool:
        """Whether it is an integer."""
        return True

    def maybe_as_int(self) -> None:
        """Return its value, which is not known."""

    def guard_int(self, *_: object) -> NoReturn:
        """Raise: its value is asked for."""
        raise Unfusable(READS_SIZES)


class _Size(torch.SymInt):
    """The size of one dimension."""

    def __eq__(self, other: object) -> bool:
        return self.node is getattr(other, "node", None) or self.node.guard_int()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _read(self, *_: object) -> NoReturn:
        self.node.guard_int()


for _name in (vars(int).keys() - vars(object).keys()) | {
    *("__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__repr__", "__format__")
}:
    setattr(_Size, _name, _Size._read)


def symbolic_sizes(ndim: int) -> torch.Size:
    """Return the sizes of a tensor, which equal themselves and nothing else."""
    return torch.Size([_Size(_Node()) for _ in range(ndim)])  # type: ignore[misc]


class SymbolicShape:
    """Base of tensors without data, whose sizes are symbols to a step, and numbers to PyTorch."""

    sizes: torch.Size | None = None
    """``None``: unknown, as those of a parameter, which may have fewer dimensions."""

    def _told(self, *, number: bool = False) -> Any:
        """Return the sizes for the caller of the caller."""
        module = sys._getframe(2).f_globals.get("__name__", "")
        if module.startswith(_INTERNAL):
            return Tensor.shape.__get__(self)  # type: ignore[attr-defined]
        if self.sizes is None or number:
            raise Unfusable(READS_SIZES)
        return self.sizes

    @property
    def shape(self) -> torch.Size:
        """The sizes."""
        return self._told()  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._told())

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes, or one of them."""
        sizes = self._told()
        return sizes if dim is None else sizes[dim]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self._told())

    def numel(self) -> int:
        """Return the number of values, where they are numbers."""
        return self._told(number=True).numel()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._told(number=True)[0]  # type: ignore[no-any-return]

    ndimension, nelement = dim, numel
