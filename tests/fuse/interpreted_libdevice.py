"""Implement Triton's ``libdevice`` with NumPy, because Triton's interpreter lacks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def _function(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of arrays as one of the interpreter's tensors."""

    def call(*args: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        # The interpreter's tensors hold NumPy arrays. Some functions compute in float64.
        made = compute(*(arg.handle.data for arg in args))
        kind = args[0].type
        return tl.tensor(TensorHandle(made.astype(args[0].handle.data.dtype), kind.scalar), kind)

    return call


_SAME = (
    "copysign cos cosh exp exp2 expm1 fmod hypot log log10 log1p log2 nextafter rint sin sinh tan"
)
for name in (*_SAME.split(), "tanh", "trunc"):
    globals()[name] = _function(getattr(np, name))
for name in ("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh"):
    globals()[name] = _function(getattr(np, f"arc{name[1:]}"))
erf, erfc = (_function(np.vectorize(each)) for each in (math.erf, math.erfc))
pow = _function(np.power)  # noqa: A001
