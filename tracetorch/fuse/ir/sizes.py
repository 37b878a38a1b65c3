"""Symbolic sizes of the tensors of a step that is traced.

A size may make other tensors and be compared with itself; whoever computes with it, or branches on
it, reads a number that is another at the next call. PyTorch's own symbolic shapes take longer to
import than to trace.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from tracetorch.fuse.ir.graph import Unfusable

READS_SIZES = "its step reads the size of its input"


class _Node:
    """A size as PyTorch's C++ passes it on."""

    def is_int(self) -> bool:
        return True

    def maybe_as_int(self) -> None:
        return None

    def guard_int(self, *_: object) -> NoReturn:
        raise Unfusable(READS_SIZES)


class _Size(torch.SymInt):
    """The size of one dimension."""

    __class__ = property(lambda self: int)  # to ``isinstance``

    def __eq__(self, other: object) -> bool:
        return self.node is getattr(other, "node", None) or self.node.guard_int()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _read(self, *_: object) -> NoReturn:
        raise Unfusable(READS_SIZES)


for _name in (vars(int).keys() - vars(object).keys()) | {
    *("__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__repr__", "__format__")
}:
    setattr(_Size, _name, _Size._read)


def symbolic_sizes(ndim: int) -> torch.Size:
    """Return the sizes of a tensor, which equal themselves and nothing else."""
    return torch.Size([_Size(_Node()) for _ in range(ndim)])  # type: ignore
