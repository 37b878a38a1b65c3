"""Define vector functions as LLVM IR: ``exp``, ``log``, ``tanh`` and what is made of them.

In float32 they are computed in float64, where a polynomial of seven terms is exact to a rounding of
float32, and cancellation is harmless; results are within one last place. The polynomials were
fitted at Chebyshev nodes. All other functions are those of the C library, lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Operand, Value, Writer

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
_LOG_2 = 0.6931471805599453
# Added to a number, it leaves its nearest integer in the last bits of the sum.
_ROUNDER = 6755399441055744.0
_ROUNDER_BITS = 0x4338000000000000
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD


def _call(name: str, x: Value, *others: Operand) -> Value:
    w = x.writer
    given = [w.literal(other, x.type) for other in others]
    return w.intrinsic(f"llvm.{name}.v{x.lanes}f64", x.type, x, *given)


def _choose(predicate: str, x: Value, y: Operand, a: Operand, b: Operand) -> Value:
    """Return ``a`` where ``x`` compares with ``y``, else ``b``."""
    return x.writer.select(x.compare("", predicate, y), a, b, x.type)


def _bits(x: Value) -> Value:
    return x.writer.convert("bitcast", x, x.type.replace("double", "i64"))


def _float_of(bits: Value) -> Value:
    return bits.writer.convert("bitcast", bits, bits.type.replace("i64", "double"))


def _polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    total = x.writer.literal(coefficients[-1], x.type)
    for coefficient in reversed(coefficients[:-1]):
        total = _call("fmuladd", total, x, coefficient)
    return total


def _reduced(x: Value) -> tuple[Value, Value]:
    """Return ``(exp(r) - 1, 2**n)`` where ``x = r + n log 2``; NaN stays."""
    x = _choose("ogt", x, 90.0, 90.0, x)
    x = _choose("olt", x, -110.0, -110.0, x)
    shifted = _call("fmuladd", x, 1 / _LOG_2, _ROUNDER)
    rest = _call("fmuladd", shifted - _ROUNDER, -_LOG_2, x)
    power = (_bits(shifted) + 1023) << 52
    return rest * _polynomial(rest, _EXPM1), _float_of(power)


def _exp(x: Value) -> Value:
    grown, power = _reduced(x)
    return (grown + 1.0) * power


def _expm1(x: Value) -> Value:
    """Return it for any sign of zero: the caller copies the sign of ``x``."""
    grown, power = _reduced(x)
    return _call("fmuladd", grown, power, power - 1.0)


def _log(x: Value) -> Value:
    bits = _bits(x)
    exponent = (bits - _ROOT_HALF_BITS).binary("ashr", "", 52)
    mantissa = _float_of(bits - (exponent << 52))
    count = _float_of(exponent + _ROUNDER_BITS) - _ROUNDER
    share = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(share * share, _LOG)
    found = _call("fmuladd", count, _LOG_2, share * series)
    found = _choose("oeq", x, math.inf, x, found)
    found = _choose("oeq", x, 0.0, -math.inf, found)
    # below 0, and NaN itself
    return _choose("ult", x, 0.0, math.nan, found)


def _log1p(x: Value) -> Value:
    found = _log(x + 1.0)
    return _choose("olt", _call("fabs", x), 1e-8, x, found)


def _tanh(x: Value) -> Value:
    grown = _expm1(x + x)
    return _call("copysign", grown / (grown + 2.0), x)


# What is computed on vectors in float32: functions of vectors of float64.
VECTOR_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "exp": _exp,
    "log": _log,
    "log1p": _log1p,
    "tanh": _tanh,
    "exp2": lambda x: _exp(x * _LOG_2),
    "expm1": lambda x: _call("copysign", _expm1(x), x),
    "log2": lambda x: _log(x) * (1 / _LOG_2),
    "log10": lambda x: _log(x) * 0.4342944819032518,
}

# Functions of the C library, by the number of their operands.
LIBRARY = {
    **dict.fromkeys(("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh"), 1),
    **dict.fromkeys(("erf", "erfc", "exp", "exp2", "expm1", "log", "log10"), 1),
    **dict.fromkeys(("log1p", "log2", "sin", "sinh", "tan", "tanh"), 1),
    **dict.fromkeys(("atan2", "fmod", "hypot", "nextafter", "pow"), 2),
}


def vector_function(op: str, real: str, width: int, name: str) -> tuple[list[str], set[str]]:
    """Return the lines of a function on vectors, and the declarations that they need."""
    w, vector = Writer(), f"<{width} x {real}>"
    operands = [Value(w, f"%x{i}", vector) for i in range(LIBRARY[op])]
    if real == "float" and op in VECTOR_FUNCTIONS:
        wide = w.convert("fpext", operands[0], f"<{width} x double>")
        found = w.convert("fptrunc", VECTOR_FUNCTIONS[op](wide), vector)
    else:  # of the C library, for each lane
        symbol, given = f"{op}f" if real == "float" else op, ", ".join([real] * len(operands))
        w.declared.add(f"declare {real} @{symbol}({given}) memory(none)")
        places = [w.value(f"alloca {vector}", "ptr") for _ in operands]
        for place, x in zip(places, operands, strict=True):
            w.line(f"store {x}, {place}")
        with w.loop(0, width) as lane:
            at = [w.value(f"getelementptr {real}, {p}, {lane.index}", "ptr") for p in places]
            numbers = ", ".join(str(w.value(f"load {real}, {place}", real)) for place in at)
            w.line(f"store {w.value(f'call {real} @{symbol}({numbers})', real)}, {at[0]}")
        found = w.value(f"load {vector}, {places[0]}", vector)
    head = f"define internal {vector} @{name}({', '.join(map(str, operands))}) {{"
    return [head, "begin:", *w.lines, f"  ret {found}", "}"], w.declared


def spread_source(name: str, real: str, width: int, masked: bool) -> tuple[list[str], set[str]]:
    """Return a function that loads each lane's value, or the one of all; masked, some lanes."""
    w, vector = Writer(), f"<{width} x {real}>"
    values = Array(Value(w, "%values", "ptr"), real)
    names = ("size", "low", "count", "neurons", "inner")
    size, low, count, neurons, inner = (Value(w, f"%{each}", WORD) for each in names)

    def same(place: Array) -> list[Value]:
        return [w.spread(place[0], width)]

    def several() -> list[Value]:
        # the place of the first lane's neuron is counted on from there
        place = low % (neurons * inner)
        neuron, run = place // inner, place % inner
        here = values.at(neuron)

        def together() -> list[Value]:
            return [here.some(0, count, width) if masked else here.vector(0, width)]

        def each() -> list[Value]:
            memory = Array(w.value(f"alloca {vector}", "ptr"), real)
            w.line(f"store {vector} zeroinitializer, {memory.pointer}")
            with w.loop(0, count, neuron, run) as lane:
                n, r = lane.carried
                memory[lane.index] = values[n]
                turned, past = (r + 1).equals(inner), n + 1
                wrapped = w.select(past.equals(neurons), 0, past)
                lane.next = (w.select(turned, wrapped, n), w.select(turned, 0, r + 1))
            return [memory.vector(0, width)]

        straight, near = inner.equals(1) & (neurons >= neuron + count), inner >= run + count
        return w.choose(straight, together, lambda: w.choose(near, lambda: same(here), each))

    found = w.choose(size.equals(1), lambda: same(values), several)[0]
    given = ", ".join(f"i64 %{each}" for each in names)
    head = f"define internal {vector} @{name}(ptr %values, {given}) noinline {{"
    return [head, "begin:", *w.lines, f"  ret {found}", "}"], w.declared
