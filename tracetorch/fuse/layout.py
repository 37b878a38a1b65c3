"""``Layout``: where the neurons of a sequence lie in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.fuse.memory import large_empty


@dataclass(frozen=True)
class Layout:
    """A sequence ``[T, ...]`` seen as ``[T, outer, neurons, inner]`` in the order of its memory.

    Every operation is pointwise, so a channels-last input is walked in its own order instead of
    being copied into another; outputs and gradients get the same order.

    Args:
        order: the dimensions of the sequence in the order of its memory, 0 first.
        outer, neurons, inner: sizes; one step is ``outer * neurons * inner`` lanes.

    """

    order: tuple[int, ...]
    outer: int
    neurons: int
    inner: int

    @property
    def lanes(self) -> int:
        """Values of one step."""
        return self.outer * self.neurons * self.inner

    def empty(self, x: Tensor, *, steps: int | None, dtype: torch.dtype) -> Tensor:
        """A new tensor shaped like ``x``, or like one step of it, in this layout."""
        sizes = [x.shape[dim] for dim in self.order]
        sizes = sizes if steps is not None else sizes[1:]
        if x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling():
            return self.restore(large_empty(sizes, dtype))
        return self.restore(torch.empty(sizes, dtype=dtype, device=x.device))

    def restore(self, ordered: Tensor) -> Tensor:
        """The dimensions of ``ordered``, a sequence or one step, back in their places."""
        if self.order == tuple(range(len(self.order))):
            return ordered
        if ordered.ndim == len(self.order):
            return ordered.permute([self.order.index(dim) for dim in range(ordered.ndim)])
        step = [dim - 1 for dim in self.order[1:]]
        return ordered.permute([step.index(dim) for dim in range(ordered.ndim)])

    def arrange(self, given: Tensor) -> Tensor:
        """``given``, a sequence or one step, with its dimensions in the order of memory."""
        if self.order == tuple(range(len(self.order))):
            return given
        if given.ndim == len(self.order):
            return given.permute(self.order)
        return given.permute([dim - 1 for dim in self.order[1:]])


def layout_of(x: Tensor, dim: int) -> Layout:
    """The layout of ``x``, whose neurons are at ``dim``, counted from the end."""
    order = tuple(range(x.ndim))
    if not x.is_contiguous() and x.ndim > 2:
        strides = x.stride()
        by_stride = sorted(range(1, x.ndim), key=lambda d: (-strides[d], d))
        if _is_dense([(x.shape[d], strides[d]) for d in by_stride]):
            order = (0, *by_stride)
    sizes = [x.shape[d] for d in order]
    place = order.index(x.ndim + dim)
    return Layout(order, math.prod(sizes[1:place]), sizes[place], math.prod(sizes[place + 1 :]))


def _is_dense(dims: Sequence[tuple[int, int]]) -> bool:
    """Whether dimensions, the slowest first, fill memory; the first may leave gaps."""
    expected = 1
    for index, (size, stride) in enumerate(reversed(dims)):
        if size != 1 and stride != expected and (index + 1 < len(dims) or stride < expected):
            return False
        expected *= size
    return True


def strided(sequence: Tensor, layout: Layout) -> tuple[Tensor, int, int]:
    """A sequence as the kernels read it: flat memory, the stride of time and that of the rows.

    A row is ``neurons * inner`` values that lie together; only what cannot be seen so is copied.
    """
    steps = sequence.shape[0]
    width = layout.neurons * layout.inner
    arranged = layout.arrange(sequence)
    if not arranged.is_contiguous():
        try:
            rows = arranged.view(steps, layout.outer, width)
        except RuntimeError:
            rows = arranged.contiguous().view(steps, layout.outer, width)
        if rows.stride(2) != 1 and width > 1:
            rows = rows.contiguous()
        per_step, per_row = rows.stride(0), rows.stride(1)
        extent = (steps - 1) * per_step + (layout.outer - 1) * per_row + width
        return rows.as_strided((extent,), (1,)), per_step, per_row
    return arranged.view(-1), layout.lanes, width
