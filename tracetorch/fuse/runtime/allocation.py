"""Memory of the kernels: its allocation, and the layout of a sequence in it.

A large new tensor costs more in page faults than the arithmetic that fills it: the allocator gives
its pages back to the system when it is freed, and every page of the next one is cleared anew. So
large results live in mappings of our own, which return to a small pool when the tensor is gone.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.ir.plan import Plan

_PAGE = 2 << 20  # a huge one
LARGE = 1 << 20  # bytes; smaller tensors come from PyTorch's allocator
_POOL_LIMIT = 256 << 20  # bytes that wait in the pool
LARGEST = 2**31 - 1  # steps, so that a product of two sizes fits into 64 bits, with what is added
_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class _Pool:
    """Mappings that no tensor uses at present, by size."""

    def __init__(self) -> None:
        self.free: dict[int, list[mmap.mmap]] = {}
        self.kept = 0
        self.lock = threading.RLock()  # a collection may give back while one is taken

    def take(self, size: int) -> mmap.mmap:
        with self.lock:
            waiting = self.free.get(size)
            if waiting:
                self.kept -= size
                return waiting.pop()
        # private: a forked child must not write into its parent's tensors
        new = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            new.madvise(mmap.MADV_HUGEPAGE)
        return new

    def give_back(self, size: int, mapping: mmap.mmap) -> None:
        with self.lock:
            if self.kept + size > _POOL_LIMIT:  # what other shapes left behind goes first
                self.free.clear()
                self.kept = 0
            if size <= _POOL_LIMIT:
                self.free.setdefault(size, []).append(mapping)
                self.kept += size


_pool = _Pool()


if hasattr(os, "register_at_fork"):
    # after a fork no thread is left in the child that would release the lock
    os.register_at_fork(after_in_child=lambda: setattr(_pool, "lock", threading.RLock()))


class _Lease(np.ndarray[Any, Any]):
    """The array that a tensor's storage keeps alive; when it goes its mapping is given back."""

    give_back: Callable[[], None]

    def __del__(self) -> None:
        self.give_back()


def large_empty(sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate as ``torch.empty`` on the CPU; where it is large, from pages used before."""
    size = math.prod(sizes) * dtype.itemsize
    if size < LARGE or dtype not in _NUMPY_DTYPES or not sys.platform.startswith("linux"):
        return torch.empty(tuple(sizes), dtype=dtype, device="cpu")
    whole = -(-size // _PAGE) * _PAGE
    try:
        mapping = _pool.take(whole)
    except OSError:  # no memory, or too many mappings: PyTorch may find some, or says what it lacks
        return torch.empty(tuple(sizes), dtype=dtype, device="cpu")
    array = _Lease(tuple(sizes), _NUMPY_DTYPES[dtype], mapping)
    array.give_back = partial(_pool.give_back, whole, mapping)
    return torch.from_numpy(array)


@cache
def cache_size() -> int:
    """Return the bytes of the last cache before memory, or 32 MiB where the system does not say."""
    for level in (4, 3):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            size = os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE")
            if size > 0:
                return size
    return 32 << 20


def address(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return the address of what a kernel reads as values of ``dtype``."""
    if tensor.dtype is not dtype or not tensor.is_cpu:
        raise wrong_memory(tensor, dtype)
    return tensor.data_ptr()


def wrong_memory(
    tensor: Tensor, dtype: torch.dtype, device: torch.device | str = "the CPU"
) -> TypeError:
    """Return the error for a tensor that a kernel cannot read as values of ``dtype``."""
    return TypeError(
        f"a kernel takes tensors of {dtype} on {device}, got one of {tensor.dtype} on "
        f"{tensor.device}. Convert it with .to(...); a model is moved before its forward pass, not "
        "between that and backward()."
    )


# Layout


class Layout(NamedTuple):
    """A sequence ``[T, ...]`` seen as ``[T, outer, neurons, inner]`` in the order of its memory.

    Every operation is pointwise: a channels-last input is walked in its own ``order``, and so are
    outputs and gradients. One step is ``outer * neurons * inner`` lanes.
    """

    order: tuple[int, ...]
    outer: int
    neurons: int
    inner: int
    lanes: int
    in_order: bool

    def allocate(
        self, x: Tensor, dtype: torch.dtype, *, sequences: int = 0, steps: int = 0
    ) -> list[Tensor]:
        """Allocate tensors shaped like the sequence ``x``, then some like one step of it."""
        sizes = tuple(x.shape) if self.in_order else tuple([x.shape[d] for d in self.order])
        # The pool serves real CPU tensors only: a fake or traced one has no memory to reuse.
        pooled = x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()
        tensors: list[Tensor] = []
        for shape, count in ((sizes, sequences), (sizes[1:], steps)):
            for _ in range(count):
                if pooled and math.prod(shape) * dtype.itemsize >= LARGE:
                    new = large_empty(shape, dtype)
                else:
                    new = torch.empty(shape, dtype=dtype, device=x.device)
                tensors.append(self.restore(new))
        return tensors

    def restore(self, ordered: Tensor) -> Tensor:
        """Permute ``ordered``, a sequence or one step, back to the order of dimensions of ``x``."""
        if self.in_order:
            return ordered
        order = self._order_of(ordered)
        return ordered.permute([order.index(dim) for dim in range(ordered.ndim)])

    def arrange(self, tensor: Tensor) -> Tensor:
        """Permute ``tensor``, a sequence or one step, to the order of memory."""
        return tensor if self.in_order else tensor.permute(self._order_of(tensor))

    def _order_of(self, tensor: Tensor) -> list[int]:
        late = len(self.order) - tensor.ndim  # 1 for a step, which lacks the time dimension
        return [dim - late for dim in self.order[late:]]


def layout_of(x: Tensor, dim: int) -> Layout:
    """Return the layout of ``x``, whose neurons are at ``dim``, counted from the end."""
    if x.shape[0] > LARGEST:
        raise ValueError(
            f"a compiled time loop takes at most {LARGEST} steps, got {x.shape[0]}. Split the "
            "sequence: the states carry over from one call to the next."
        )
    order, in_order = tuple(range(x.ndim)), True
    # Two dimensions leave one order after time; contiguous memory needs no other (the fast path).
    if x.ndim > 2 and not x.is_contiguous():
        strides = x.stride()
        # Time stays first; of equal strides (size 1, or expanded) the given order is kept.
        by_stride = sorted(range(1, x.ndim), key=lambda d: (-strides[d], d))
        # With gaps or overlaps (a slice, an expanded dimension) the order stays; see `strided`.
        if _is_dense([(x.shape[d], strides[d]) for d in by_stride]):
            in_order = order == (0, *by_stride)
            order = (0, *by_stride)
    sizes = x.shape if in_order else [x.shape[d] for d in order]
    # All outer rows and all inner lanes of a neuron share its parameters.
    place = order.index(x.ndim + dim)
    outer, neurons, inner = math.prod(sizes[1:place]), sizes[place], math.prod(sizes[place + 1 :])
    return Layout(order, outer, neurons, inner, outer * neurons * inner, in_order)


def allocate_results(
    plan: Plan, layout: Layout, x: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Allocate output, final states, trajectories, in the order of ``x``, and checkpoints."""
    dtype, count = plan.program.dtype, 1 + len(plan.record)
    new = layout.allocate(x, dtype, sequences=count, steps=len(plan.program.states))
    # The states at the start of each segment but the first; the backward pass recomputes the rest.
    stored = plan.checkpoints(x.shape[0]) * len(plan.recomputed) * layout.lanes
    checkpoints = torch.empty(stored, dtype=dtype, device=x.device)
    return new[0], new[count:], new[1:count], checkpoints


def _is_dense(dims: Sequence[tuple[int, int]]) -> bool:
    """Whether dimensions, the slowest first, fill memory; the first may leave gaps."""
    # From the fastest dimension up, each stride must be the size of all that is inside it.
    expected = 1
    for index, (size, stride) in enumerate(reversed(dims)):
        # A dimension of size 1 is never stepped over, so its stride is arbitrary in PyTorch.
        if size != 1 and stride != expected and (index + 1 < len(dims) or stride < expected):
            return False
        expected *= size
    return True


def strided(sequence: Tensor, layout: Layout) -> tuple[Tensor, int, int]:
    """Return flat memory, and the strides of time and rows, which lie together; else of a copy."""
    width = layout.neurons * layout.inner
    arranged = sequence if layout.in_order else layout.arrange(sequence)
    # The common case, without the views below.
    if arranged.is_contiguous():
        return arranged.view(-1), layout.lanes, width
    steps = sequence.shape[0]
    # A view keeps any strides of time and rows, such as those of an expanded gradient.
    try:
        rows = arranged.view(steps, layout.outer, width)
    except RuntimeError:
        rows = arranged.contiguous().view(steps, layout.outer, width)
    # The kernels step through a row one value at a time: only these two strides are arguments.
    if rows.stride(2) != 1 and width > 1:
        rows = rows.contiguous()
    per_step, per_row = rows.stride(0), rows.stride(1)
    # One flat view from the first value to the last: an expanded dimension has stride 0, so the
    # number of values says nothing about the memory.
    extent = (steps - 1) * per_step + (layout.outer - 1) * per_row + width
    return rows.as_strided((extent,), (1,)), per_step, per_row
