"""Define vector functions as LLVM IR: ``exp``, ``log``, ``tanh``, ``erf`` and what is made of them.

In float32 they are computed in float64, where a polynomial of seven terms is exact to a rounding of
float32, and cancellation is harmless; results are within one last place. The polynomials were
fitted at Chebyshev nodes. All other functions are those of the C library, lane by lane.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# (exp(r) - 1) / r for |r| up to half of log 2, to 1e-9.
_EXPM1 = (
    *(1.0, 0.5000000053067255, 0.16666666725604243, 0.04166632700228545, 0.008333295608324359),
    *(0.0013943221766582856, 0.00019901620653935256),
)
# 2 atanh(s) / s in s squared, for s of a mantissa between the square roots of 1/2 and 2.
_LOG = (
    *(2.0000000000085962, 0.6666666521533552, 0.40000391218630166),
    *(0.28534636574326594, 0.2362438965152718),
)
# erf(x) / x in x squared, up to 1; log(erfc(x)) from 1 to 4.1.
_ERF = (
    *(1.1283791670615435, -0.3761263846802871, 0.11283782495236844, -0.026865430727670236),
    *(0.005221031807858004, -0.0008484080405534861, 0.00011265959025604977),
    -9.667044571482653e-06,
)
_LOG_ERFC = (
    *(0.00043312918486047614, -1.1307512258643186, -0.6308045695403662, -0.11121892641184321),
    *(0.027212459497430626, -0.005115367188531167, 0.0007004422141140502),
    *(-6.494943787614156e-05, 3.5957109416283726e-06, -8.813475906297848e-08),
)
_LOG_2 = 0.6931471805599453
# Added to a number, it leaves its nearest integer in the last bits of the sum.
_ROUNDER = 6755399441055744.0
_ROUNDER_BITS = 0x4338000000000000
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD


def number(value: float) -> str:
    """Return a float or double constant: the bits of the double, as LLVM spells both."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


@dataclass
class _Body:
    """Write the body of a function on vectors of float64.

    Args:
        width: lanes.
        lines: those written so far.
        declared: declarations of intrinsics that they need.
    """

    width: int
    lines: list[str] = field(default_factory=list)
    declared: set[str] = field(default_factory=set)

    @property
    def real(self) -> str:
        return f"<{self.width} x double>"

    @property
    def whole(self) -> str:
        return f"<{self.width} x i64>"

    def let(self, text: str) -> str:
        name = f"%t{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def constant(self, value: float | str) -> str:
        return value if isinstance(value, str) else f"splat (double {number(value)})"

    def op(self, op: str, x: float | str, y: float | str) -> str:
        return self.let(f"{op} {self.real} {self.constant(x)}, {self.constant(y)}")

    def integer(self, op: str, x: str, y: int) -> str:
        return self.let(f"{op} {self.whole} {x}, splat (i64 {y})")

    def bits(self, x: str) -> str:
        return self.let(f"bitcast {self.real} {x} to {self.whole}")

    def float_of(self, x: str) -> str:
        return self.let(f"bitcast {self.whole} {x} to {self.real}")

    def call(self, name: str, *args: float | str) -> str:
        suffix = f"v{self.width}f64"
        types = ", ".join([self.real] * len(args))
        self.declared.add(f"declare {self.real} @llvm.{name}.{suffix}({types})")
        spelled = ", ".join(f"{self.real} {self.constant(a)}" for a in args)
        return self.let(f"call {self.real} @llvm.{name}.{suffix}({spelled})")

    def choose(self, compare: str, x: str, y: float | str, a: float | str, b: float | str) -> str:
        """Return ``a`` where ``x`` compares with ``y``, else ``b``."""
        mask = self.let(f"fcmp {compare} {self.real} {x}, {self.constant(y)}")
        both = f"{self.real} {self.constant(a)}, {self.real} {self.constant(b)}"
        return self.let(f"select <{self.width} x i1> {mask}, {both}")

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        total: float | str = coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            total = self.call("fmuladd", total, x, coefficient)
        return self.constant(total)

    # Functions of float64, for results in float32

    def reduced(self, x: str, highest: float) -> tuple[str, str]:
        """Return ``(exp(r) - 1, 2**n)`` where ``x = r + n log 2``; NaN stays."""
        x = self.choose("ogt", x, highest, highest, x)
        x = self.choose("olt", x, -110.0, -110.0, x)
        shifted = self.call("fmuladd", x, 1 / _LOG_2, _ROUNDER)
        whole = self.op("fsub", shifted, _ROUNDER)
        rest = self.call("fmuladd", whole, -_LOG_2, x)
        grown = self.op("fmul", rest, self.polynomial(rest, _EXPM1))
        power = self.integer("shl", self.integer("add", self.bits(shifted), 1023), 52)
        return grown, self.float_of(power)

    def exp(self, x: str) -> str:
        grown, power = self.reduced(x, 90.0)
        return self.op("fmul", self.op("fadd", grown, 1.0), power)

    def expm1(self, x: str) -> str:
        """Return it for any sign of zero: the caller copies the sign of ``x``."""
        grown, power = self.reduced(x, 90.0)
        return self.call("fmuladd", grown, power, self.op("fsub", power, 1.0))

    def log(self, x: str) -> str:
        bits = self.bits(x)
        exponent = self.integer("ashr", self.integer("sub", bits, _ROOT_HALF_BITS), 52)
        shift = self.integer("shl", exponent, 52)
        mantissa = self.float_of(self.let(f"sub {self.whole} {bits}, {shift}"))
        count = self.float_of(self.integer("add", exponent, _ROUNDER_BITS))
        count = self.op("fsub", count, _ROUNDER)
        share = self.op("fdiv", self.op("fsub", mantissa, 1.0), self.op("fadd", mantissa, 1.0))
        series = self.polynomial(self.op("fmul", share, share), _LOG)
        found = self.call("fmuladd", count, _LOG_2, self.op("fmul", share, series))
        found = self.choose("oeq", x, float("inf"), x, found)
        found = self.choose("oeq", x, 0.0, float("-inf"), found)
        # below 0, and NaN itself
        return self.choose("ult", x, 0.0, float("nan"), found)

    def log1p(self, x: str) -> str:
        found = self.log(self.op("fadd", x, 1.0))
        return self.choose("olt", self.call("fabs", x), 1e-8, x, found)

    def tanh(self, x: str) -> str:
        grown = self.expm1(self.op("fadd", x, x))
        found = self.op("fdiv", grown, self.op("fadd", grown, 2.0))
        return self.call("copysign", found, x)

    def sinh(self, x: str) -> str:
        grown = self.expm1(self.call("fabs", x))
        shrunk = self.op("fdiv", grown, self.op("fadd", grown, 1.0))
        both = self.op("fadd", grown, shrunk)
        return self.call("copysign", self.op("fmul", both, 0.5), x)

    def cosh(self, x: str) -> str:
        grown = self.exp(self.call("fabs", x))
        both = self.op("fadd", grown, self.op("fdiv", 1.0, grown))
        return self.op("fmul", both, 0.5)

    def erf(self, x: str) -> str:
        size = self.call("fabs", x)
        near = self.op("fmul", size, self.polynomial(self.op("fmul", x, x), _ERF))
        far = self.choose("ogt", size, 4.1, 4.1, size)
        tail = self.exp(self.polynomial(far, _LOG_ERFC))
        found = self.choose("olt", size, 1.0, near, self.op("fsub", 1.0, tail))
        return self.call("copysign", found, x)


# What is computed on vectors in float32; _Body's methods take and return float64.
VECTOR_FUNCTIONS: dict[str, Callable[[_Body, str], str]] = {
    "exp": _Body.exp,
    "exp2": lambda b, x: b.exp(b.op("fmul", x, _LOG_2)),
    "expm1": lambda b, x: b.call("copysign", b.expm1(x), x),
    "log": _Body.log,
    "log2": lambda b, x: b.op("fmul", b.log(x), 1 / _LOG_2),
    "log10": lambda b, x: b.op("fmul", b.log(x), 0.4342944819032518),
    "log1p": _Body.log1p,
    "tanh": _Body.tanh,
    "sinh": _Body.sinh,
    "cosh": _Body.cosh,
    "erf": _Body.erf,
}

# Functions of the C library, by the number of their operands.
LIBRARY = {
    **dict.fromkeys(("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh"), 1),
    **dict.fromkeys(("erf", "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log10"), 1),
    **dict.fromkeys(("log1p", "log2", "sin", "sinh", "tan", "tanh"), 1),
    **dict.fromkeys(("atan2", "fmod", "hypot", "nextafter", "pow"), 2),
}


def vector_function(op: str, real: str, width: int, name: str) -> tuple[list[str], set[str]]:
    """Return the lines of a function on vectors, and the declarations that they need.

    Args:
        op: the operation.
        real: ``"float"`` or ``"double"``.
        width: lanes; 1 for a scalar.
        name: of the function.
    """
    if real == "float" and op in VECTOR_FUNCTIONS:
        body = _Body(width)
        vector = f"<{width} x float>"
        wide = body.let(f"fpext {vector} %x to {body.real}")
        found = VECTOR_FUNCTIONS[op](body, wide)
        lines = [f"define internal {vector} @{name}({vector} %x) {{", *body.lines]
        lines += [f"  %found = fptrunc {body.real} {found} to {vector}"]
        return [*lines, f"  ret {vector} %found", "}"], body.declared
    return _lane_by_lane(op, real, width, name)


def _lane_by_lane(op: str, real: str, width: int, name: str) -> tuple[list[str], set[str]]:
    """Return a function that calls the C library for each lane."""
    symbol = f"{op}f" if real == "float" else op
    operands = [f"%x{i}" for i in range(LIBRARY[op])]
    vector = f"<{width} x {real}>"
    lines = [f"define internal {vector} @{name}({', '.join(f'{vector} {x}' for x in operands)}) {{"]
    lines.append("start:")
    for x in operands:
        lines += [f"  {x}.at = alloca {vector}", f"  store {vector} {x}, ptr {x}.at"]
    lines += ["  br label %lane", "lane:", "  %i = phi i64 [ 0, %start ], [ %next, %lane ]"]
    for x in operands:
        lines.append(f"  {x}.place = getelementptr {real}, ptr {x}.at, i64 %i")
        lines.append(f"  {x}.i = load {real}, ptr {x}.place")
    given = ", ".join(f"{real} {x}.i" for x in operands)
    lines += [
        f"  %found = call {real} @{symbol}({given})",
        f"  store {real} %found, ptr %x0.place",
        "  %next = add i64 %i, 1",
        f"  %more = icmp ult i64 %next, {width}",
        "  br i1 %more, label %lane, label %done",
        "done:",
        f"  %all = load {vector}, ptr %x0.at",
        f"  ret {vector} %all",
        "}",
    ]
    types = ", ".join([real] * len(operands))
    return lines, {f"declare {real} @{symbol}({types}) memory(none)"}
