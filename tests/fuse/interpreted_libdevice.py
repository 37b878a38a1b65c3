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


atan = _function(np.arctan)
atan2 = _function(np.arctan2)
cos = _function(np.cos)
cosh = _function(np.cosh)
erf = _function(np.vectorize(math.erf))
exp = _function(np.exp)
expm1 = _function(np.expm1)
log = _function(np.log)
log1p = _function(np.log1p)
log2 = _function(np.log2)
pow = _function(np.power)  # noqa: A001
rint = _function(np.rint)
sin = _function(np.sin)
sinh = _function(np.sinh)
tan = _function(np.tan)
tanh = _function(np.tanh)
trunc = _function(np.trunc)
acos = _function(np.arccos)
acosh = _function(np.arccosh)
asin = _function(np.arcsin)
asinh = _function(np.arcsinh)
atanh = _function(np.arctanh)
copysign = _function(np.copysign)
erfc = _function(np.vectorize(math.erfc))
exp2 = _function(np.exp2)
fmod = _function(np.fmod)
hypot = _function(np.hypot)
log10 = _function(np.log10)
nextafter = _function(np.nextafter)
