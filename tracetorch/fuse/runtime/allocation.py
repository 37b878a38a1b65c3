"""Allocate memory for the kernels: large results and scratch from pages that are used again.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PAGE = 2 << 20  # a huge one
LARGE = 1 << 20  # bytes; smaller tensors come from PyTorch's allocator
_POOL_LIMIT = 256 << 20  # bytes that wait in the pool
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
