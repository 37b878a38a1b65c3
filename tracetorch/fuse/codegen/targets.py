"""Describe the languages that kernels are printed in: Triton, JavaScript."""

from __future__ import annotations

import torch

from tracetorch.fuse.codegen.emitter import Target

# Operations that all targets spell alike.
_INFIX = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "xor": "{} ^ {}",
}

# Functions that NumPy and CUDA's libdevice call alike.
_UNARY = (
    *("ceil", "cos", "cosh", "exp", "exp2", "expm1", "floor", "log", "log10", "log1p", "log2"),
    *("sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)
# Functions that CUDA's libdevice and JavaScript's Math call alike.
_INVERSE = ("acos", "acosh", "asin", "asinh", "atan", "atanh")
_BINARY = ("copysign", "fmod", "hypot", "nextafter")

# Comparisons with itself let NaN pass, as in PyTorch. Of two equal operands, zeros of both signs,
# the second one is returned, as by the processor's vector instructions.
_TRITON = {
    **_INFIX,
    "abs": "libdevice.abs({})",
    "max": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    "min": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    "fma": "tl.fma({}, {}, {})",
    "where": "tl.where({}, {}, {})",
    "float": "tl.where({}, one, zero)",
    "not": "{} ^ true",
    "sigmoid": "one / (one + libdevice.exp(-{}))",
    "round": "libdevice.rint({})",
    **{op: f"libdevice.{op}({{}})" for op in _INVERSE},
    **{op: f"libdevice.{op}({{}})" for op in ("erf", "erfc", "lgamma", *_UNARY)},
    **{op: f"libdevice.{op}({{}}, {{}})" for op in ("atan2", "pow", *_BINARY)},
    "sqrt": "tl.sqrt({})",
}

# Triton's own division and square root of float32 are approximations.
_TRITON_FLOAT32 = {
    **_TRITON,
    "div": "tl.div_rn({}, {})",
    "sigmoid": "tl.div_rn(one, one + libdevice.exp(-{}))",
    "sqrt": "tl.sqrt_rn({})",
}

# A number is float64. The functions without `Math.` are those of javascript_functions.py.
_JAVASCRIPT = {
    **_INFIX,
    "eq": "{} === {}",
    "ne": "{} !== {}",
    "and": "{} && {}",
    "or": "{} || {}",
    "xor": "{} !== {}",
    "not": "!{}",
    "max": "({0} > {1} || {0} !== {0} ? {0} : {1})",
    "min": "({0} < {1} || {0} !== {0} ? {0} : {1})",
    "where": "({} ? {} : {})",
    "float": "({} ? 1 : 0)",
    "sigmoid": "1 / (1 + Math.exp(-{}))",
    "fmod": "{} % {}",
    **{op: f"Math.{op}({{}}, {{}})" for op in ("atan2", "hypot")},
    **{op: f"Math.{op}({{}})" for op in ("abs", *_INVERSE, *_UNARY)},
    "exp2": "Math.pow(2, {})",
    **{op: f"{op}({{}})" for op in ("erf", "erfc", "lgamma", "round")},
    **{op: f"{op}({{}}, {{}})" for op in ("copysign", "nextafter", "pow")},
    "fma": "fma({}, {}, {})",
}


def real_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in NumPy, Numba and Triton, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def triton_target(dtype: torch.dtype) -> Target:
    """Return the description of Triton, with arithmetic in ``dtype``."""
    real = f"tl.{real_name(dtype)}"
    return Target(
        real=real,
        expressions=_TRITON_FLOAT32 if dtype == torch.float32 else _TRITON,
        literal=f"tl.full((BLOCK,), tl.load(literals + {{}}), {real})",
        true="true",
        # a Python bool would be another type than a block of truth values
        false="(true ^ true)",
        negative_zero="(-zero)",
    )


def javascript_target() -> Target:
    """Return the description of JavaScript, whose numbers are all float64."""
    return Target(
        real="number",
        expressions=_JAVASCRIPT,
        literal="literals[{}]",
        true="true",
        false="false",
        zero="0",
        negative_zero="(-0)",
        one="1",
        empty=";",
        assignment="const {} = {};",
        end="}",
    )
