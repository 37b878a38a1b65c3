"""Compile the kernels of products with events, at the first call of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from tracetorch.fuse.runtime.kernel_cache import compiled

# One letter for each argument: i an integer, r reals, l integers, n short and h shorter ones.
_ARGUMENTS = {
    "scan": "iiirhl",
    "fill": "iiirhlnrl",
    "sort": "iiiiilnrlnr",
    "forward": "iilnrrrir",
    "backward": "iiiiiillnrrir",
}


@functools.cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Return a kernel of ``tracetorch/events/kernels.py``.

    Args:
        name: its name.
        dtype: float32 or float64.
    """
    from numba import types

    real = types.float32 if dtype == torch.float32 else types.float64
    kinds = {
        "i": types.int64,
        "r": real[::1],
        "l": types.int64[::1],
        "n": types.int32[::1],
        "h": types.uint16[::1],
    }
    signature = types.void(*(kinds[letter] for letter in _ARGUMENTS[name]))
    source = (Path(__file__).parent / "kernels.py").read_text(encoding="utf-8")
    return compiled(source, name, signature)
