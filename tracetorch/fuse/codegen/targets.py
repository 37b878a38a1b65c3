"""Describe the languages that kernels are printed in: Triton, JavaScript, C99."""

from __future__ import annotations

import torch

from tracetorch.fuse.codegen.emitter import Target

# Operations that all targets spell alike.
_INFIX = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}",
    "gt": "{} > {}", "ge": "{} >= {}", "lt": "{} < {}", "le": "{} <= {}", "eq": "{} == {}",
    "ne": "{} != {}", "and": "{} & {}", "or": "{} | {}", "xor": "{} ^ {}",
}  # fmt: skip

# Functions that C and CUDA's libdevice call alike.
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
    "max": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    "min": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    "fma": "tl.fma({}, {}, {})",
    "where": "tl.where({}, {}, {})",
    "float": "tl.where({}, one, zero)",
    "not": "{} ^ true",
    "double": "{}.to(tl.float64)",
    "sigmoid": "one / (one + libdevice.exp(-{}))",
    "round": "libdevice.rint({})",
    **{op: f"libdevice.{op}({{}})" for op in _INVERSE},
    **{op: f"libdevice.{op}({{}})" for op in ("erf", "erfc", *_UNARY)},
    **{op: f"libdevice.{op}({{}}, {{}})" for op in ("atan2", "pow", *_BINARY)},
    # libdevice's may take the smallest numbers for zero
    **{op: f"tl.{op}({{}})" for op in ("abs", "floor", "ceil", "sqrt")},
}

# Triton's own division and square root of float32 are approximations.
_TRITON_FLOAT32 = {
    **_TRITON,
    "div": "tl.div_rn({}, {})",
    "sigmoid": "tl.div_rn(one, one + libdevice.exp(-{}))",
    "sqrt": "tl.sqrt_rn({})",
}

# Of C and JavaScript.
_SHARED = {
    **_INFIX,
    "and": "{} && {}",
    "or": "{} || {}",
    "xor": "{} != {}",
    "not": "!{}",
    "max": "({0} > {1} || {0} != {0} ? {0} : {1})",
    "min": "({0} < {1} || {0} != {0} ? {0} : {1})",
    "where": "({} ? {} : {})",
}

# A number is float64. The functions without `Math.` are those of javascript.py.
_JAVASCRIPT = {
    **_SHARED,
    "double": "{}",
    "float": "({} ? 1 : 0)",
    "sigmoid": "1 / (1 + Math.exp(-{}))",
    "fmod": "{} % {}",
    **{op: f"Math.{op}({{}}, {{}})" for op in ("atan2", "hypot")},
    **{op: f"Math.{op}({{}})" for op in ("abs", *_INVERSE, *_UNARY)},
    "exp2": "Math.pow(2, {})",
    "round": "round({})",
    **{op: f"{op}({{}}, {{}})" for op in ("copysign", "pow")},
    # rounded twice, which may move its last place
    "fma": "{} * {} + {}",
}

# Operations of float32 whose result in float64 has too many digits.
_ROUNDED = (
    *("add", "sub", "mul", "div", "fma", "sigmoid", "atan2", "hypot", "pow"),
    *(op for op in (*_INVERSE, *_UNARY) if op not in ("ceil", "floor", "trunc")),
)


# The rest of C99 is called as in Python, with an f at the end for float32.
_C = {
    **_SHARED,
    "float": "({} ? {one} : {zero})",
    "double": "(double){}",
    "sigmoid": "{one} / ({one} + exp{f}(-{}))",
    "abs": "fabs{f}({})",
    "round": "rint{f}({})",
    **{op: f"{op}{{f}}({{}})" for op in (*_INVERSE, *_UNARY, "erf", "erfc")},
    **{op: f"{op}{{f}}({{}}, {{}})" for op in (*_BINARY, "atan2", "pow")},
    "fma": "fma{f}({}, {}, {})",
}

_BRACES = {"empty": ";", "assignment": "{} = {};", "end": "}"}
_INTEGERS = {op: _INFIX[op] for op in ("add", "sub", "mul", "gt", "ge", "lt", "le", "eq", "ne")}
_INTEGERS["rem"] = "{} % {}"  # of numbers that are not negative, on which all languages agree


def triton_target(dtype: torch.dtype) -> Target:
    return Target(
        expressions=_TRITON_FLOAT32 if dtype == torch.float32 else _TRITON,
        integers={**_INTEGERS, "min": "tl.minimum({}, {})"},
        # a Python bool would be another type than a block of truth values
        false="(true ^ true)",
        negative_zero="(-zero)",
    )


def javascript_target(real: str = "float64") -> Target:
    # Its numbers are all float64. A sum, a product, a quotient and a root of float32 are those of
    # float64, rounded once more, for that has more than twice as many digits.
    rounded = _ROUNDED if real == "float32" else ()
    expressions = _JAVASCRIPT | {op: f"Math.fround({_JAVASCRIPT[op]})" for op in rounded}
    integers = {**_INTEGERS, "min": "Math.min({}, {})"}
    return Target(expressions, integers, zero="0", negative_zero="(-0)", one="1", **_BRACES)


# Integers of two's complement without undefined behaviour: a shift of a negative number is defined
# by its complement; `/` rounds towards zero. Divisors are positive.
_C_INTEGERS = {
    **_SHARED,
    "max": "({0} > {1} ? {0} : {1})",
    "min": "({0} < {1} ? {0} : {1})",
    "abs": "({0} < 0 ? -{0} : {0})",
    "float": "({} ? 1 : 0)",
    "shift": "({0} >= 0 ? {0} >> {1} : ~(~{0} >> {1}))",
    "quotient": "({0} / {1} - ({0} % {1} < 0))",
}


def c_integer_target() -> Target:
    """Return C99 with integers; its ``shift`` and ``quotient`` round towards minus infinity."""
    return Target(_C_INTEGERS, _C_INTEGERS, zero="0", negative_zero="0", one="1", **_BRACES)


def c_target(real: str) -> Target:
    suffix = "f" if real == "float32" else ""
    zero, one = f"0.0{suffix}", f"1.0{suffix}"
    expressions = {
        op: template.replace("{f}", suffix).replace("{one}", one).replace("{zero}", zero)
        for op, template in _C.items()
    }
    integers = {**_INTEGERS, "min": "({0} < {1} ? {0} : {1})"}
    literals = {"zero": zero, "negative_zero": f"(-{zero})", "one": one}
    return Target(expressions, integers, **literals, **_BRACES)
