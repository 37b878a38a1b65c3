"""Memory for the kernels: huge pages for large results, scratch that is used again."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

_PAGE = 2 << 20
_WORTH_IT = 4 << 20  # bytes
_MADV_HUGEPAGE = 14


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found: Callable[[int, int, int], int] = call
    return found


def in_huge_pages(fresh: Tensor) -> Tensor:
    """``fresh``, whose pages the system is asked to make large before they are first touched.

    The faults of a large new tensor otherwise cost more than the arithmetic that fills it. It is
    advice: where it cannot be followed nothing changes.
    """
    size = fresh.numel() * fresh.element_size()
    if size >= _WORTH_IT and fresh.device.type == "cpu" and (advise := _madvise()):
        start = -(-fresh.data_ptr() // _PAGE) * _PAGE
        end = (fresh.data_ptr() + size) // _PAGE * _PAGE
        if end > start:
            advise(start, end - start, _MADV_HUGEPAGE)
    return fresh


class _Scratch(threading.local):
    """Each thread's own; a kernel writes it before it reads it."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, type], Any] = {}


_scratch = _Scratch()


def scratch(slot: int, size: int, dtype: type) -> Any:
    """An array of at least ``size`` values, not cleared, the calling thread's until its next."""
    held = _scratch.held.get((slot, dtype))
    if held is None or held.size < size:
        held = _scratch.held[slot, dtype] = np.empty(size, dtype)
    return held
