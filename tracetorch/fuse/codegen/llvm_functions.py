"""Define the functions that kernels call in LLVM IR: of vectors, and products by matrices.

In float32 ``exp``, ``log`` and ``tanh`` are polynomials of seven terms in float64, fitted at
Chebyshev nodes, within one last place. All others are those of the C library, lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Operand, Value, Writer, below

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
    return x.writer.select(x.apply(predicate, y), a, b, x.type)


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
    x = _choose("gt", x, 90.0, 90.0, x)
    x = _choose("lt", x, -110.0, -110.0, x)
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
    exponent = (bits - _ROOT_HALF_BITS).apply("ashr", 52)
    mantissa = _float_of(bits - (exponent << 52))
    count = _float_of(exponent + _ROUNDER_BITS) - _ROUNDER
    share = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(share * share, _LOG)
    found = _call("fmuladd", count, _LOG_2, share * series)
    found = _choose("eq", x, math.inf, x, found)
    found = _choose("eq", x, 0.0, -math.inf, found)
    # below 0, and NaN itself
    return _choose("ult", x, 0.0, math.nan, found)


def _log1p(x: Value) -> Value:
    found = _log(x + 1.0)
    return _choose("lt", _call("fabs", x), 1e-8, x, found)


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


# Products of the rows of one step by square matrices, by their events or densely. A matrix comes in
# panels: all rows of its first columns, then all rows of the next ones, the last padded with zeros.
# The sums of a panel stay in registers. Four rows share what is read of the matrix, unless most of
# their values are zero. Contraction is allowed: no sum of products has an order that is promised.

DENSE = 0.4  # share of values that are not zero from which the dense product is faster
_QUAD = 4  # rows that are multiplied together
_ARGUMENTS = ("rows", "size", "first", "count", "matrices", "step")


def product_source(real: str, panel: int, narrow: int) -> tuple[list[str], set[str]]:
    """Return the function ``@multiply``, and LLVM's own ones that it calls.

    Arguments: pointers to ``source``, ``matrix``, ``target``; then integers: ``rows`` of ``size``
    values, the ``first`` and ``count`` of the matrices, and the ``step`` from target to target.
    """
    w = Writer()
    source, matrix, target = (
        Array(Value(w, f"%{name}", "ptr"), real) for name in ("source", "matrix", "target")
    )
    rows, size, first, count, matrices, step = (Value(w, f"%{n}", WORD) for n in _ARGUMENTS)
    zero, width = w.literal(0, WORD), size + 1
    with w.when(count >= 1):
        listed = w.value(f"alloca i32, {rows * width}", "ptr")
        counted = w.value(f"alloca i64, {rows}", "ptr")
        lists = _Lists(Array(listed, "i32"), Array(counted, WORD), width)
        lists.fill(source, rows, size, narrow)
        tables = (size + (panel - 1)) // panel * panel * size
        with w.loop(0, count) as tap:
            number = first + tap.index
            table, out = matrix.at(number * tables), target.at(tap.index * step)
            overwrites = number.equals(matrices - 1)
            with w.repeat(below(size), zero) as block:
                low = block.index
                sums = _Sums(size, low, overwrites, panel)
                _multiply_panel(lists, source, table.at(low * size), out, rows, sums)
                block.next = (low + panel,)
    w.line("ret void")
    given = ", ".join(f"i64 %{name}" for name in _ARGUMENTS)
    pointers = "ptr noalias %source, ptr noalias %matrix, ptr noalias %target"
    head = f"define internal void @multiply({pointers}, {given}) noinline {{"
    return [head, "begin:", *w.lines, "}"], w.declared


@dataclass(frozen=True)
class _Lists:
    """Places of the values of each row that are not zero, and counts; -1: four rows densely."""

    places: Array
    counts: Array
    width: Value

    def of(self, row: Value) -> Array:
        return self.places.at(row * self.width)

    def fill(self, source: Array, rows: Value, size: Value, narrow: int) -> None:
        """List the events of all rows but those that are multiplied densely."""
        w = rows.writer
        with w.repeat(below(rows), w.literal(0, WORD)) as each:
            row = each.index
            line = source.at(row * size)
            is_quad = (row % _QUAD).equals(0) & (rows - row >= _QUAD)
            dense = w.choose(
                is_quad,
                lambda: [_is_dense(line, size * _QUAD, narrow)],
                lambda: [Value(w, "false", "i1")],
            )[0]
            with w.when(dense):
                self.counts[row] = -1
            with w.when(dense ^ 1):
                self._write(row, line, size)
            each.next = (row + w.select(dense, _QUAD, 1),)

    def _write(self, row: Value, line: Array, size: Value) -> None:
        w, places = row.writer, self.of(row)
        with w.loop(0, size, w.literal(0, WORD)) as one:
            (found,) = one.carried
            # without a branch, and overwritten if it is none
            places[found] = one.index
            event = w.convert("zext", line[one.index].differs(0.0), WORD)
            one.next = (found + event,)
        self.counts[row] = one.carried[0]


def _is_dense(values: Array, count: Value, narrow: int) -> Value:
    """Whether more of some values are not zero than events are good for."""
    w = count.writer
    whole, kind = count // narrow * narrow, f"i{narrow}"
    with w.loop(0, whole, w.literal(0, WORD), step=narrow) as block:
        events = values.vector(block.index, narrow).differs(0.0)
        bits = w.intrinsic(f"llvm.ctpop.{kind}", kind, w.convert("bitcast", events, kind))
        block.next = (block.carried[0] + w.convert("zext", bits, WORD),)
    with w.loop(whole, count, *block.carried) as one:
        event = w.convert("zext", values[one.index].differs(0.0), WORD)
        one.next = (one.carried[0] + event,)
    return count * int(100 * DENSE) < one.carried[0] * 100


@dataclass(frozen=True)
class _Sums:
    """The sums of a panel, from the target and back to it."""

    size: Value
    low: Value
    overwrites: Value
    panel: int

    def begin(self, target: Array) -> Value:
        """Return what the sums of a row begin with."""
        w, left = self.low.writer, self.size - self.low
        zeros = Value(w, "zeroinitializer", f"<{self.panel} x {target.element}>")

        def read() -> Sequence[Value]:
            return w.choose(
                left >= self.panel,
                lambda: [target.vector(self.low, self.panel)],
                lambda: [target.some(self.low, left, self.panel)],
            )

        return w.choose(self.overwrites, lambda: [zeros], read)[0]

    def end(self, target: Array, total: Value) -> None:
        w, left = self.low.writer, self.size - self.low
        is_whole = left >= self.panel
        with w.when(is_whole):
            target.store(self.low, total)
        with w.when(is_whole ^ 1):
            target.store_some(self.low, left, total)


def _multiply_panel(
    lists: _Lists, source: Array, table: Array, target: Array, rows: Value, sums: _Sums
) -> None:
    w, size, panel = rows.writer, sums.size, sums.panel

    def add(totals: Sequence[Value], lines: Sequence[Value], place: Value) -> tuple[Value, ...]:
        """Add a row of the matrix, as often as the value there says, to the sums of some rows."""
        weights = table.vector(place * panel, panel)
        name = f"llvm.fmuladd.v{panel}f{32 if source.element == 'float' else 64}"
        factors = (w.spread(source.at(line)[place], panel) for line in lines)
        pairs = zip(totals, factors, strict=True)
        return tuple([w.intrinsic(name, t.type, factor, weights, t) for t, factor in pairs])

    with w.repeat(below(rows), w.literal(0, WORD)) as each:
        row = each.index
        count = lists.counts[row]

        def dense(row: Value = row) -> Sequence[Value]:
            lines = [(row + r) * size for r in range(_QUAD)]
            begun = [sums.begin(target.at(line)) for line in lines]
            with w.loop(0, size, *begun) as each:
                each.next = add(each.carried, lines, each.index)
            for line, total in zip(lines, each.carried, strict=True):
                sums.end(target.at(line), total)
            return [w.literal(_QUAD, WORD)]

        def sparse(row: Value = row, count: Value = count) -> Sequence[Value]:
            line, places = row * size, lists.of(row)
            with w.loop(0, count, sums.begin(target.at(line))) as each:
                each.next = add(each.carried, [line], places[each.index])
            sums.end(target.at(line), each.carried[0])
            return [w.literal(1, WORD)]

        done = w.choose(count < 0, dense, sparse)[0]
        each.next = (row + done,)
