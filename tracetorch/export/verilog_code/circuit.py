"""``step_circuit``: the step of a pointwise stage of integers as a circuit: wires of proved ranges.

The lines of the graph become integer operations by the same arithmetic as in C
(``c_code.widths.IntegerLines``); each is a wire (``wires``), of which rules make a smaller circuit
(``peephole``). The range of a wire follows from those of its operands, and where it is a line, from
the table of intervals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracetorch.export.c_code.stages import Array, Pointwise, Role
from tracetorch.export.c_code.widths import IntegerLines, Number, Widths
from tracetorch.export.verilog_code.peephole import LAST_RULES, RULES
from tracetorch.export.verilog_code.wires import (
    Wire,
    Wires,
    Word,
    needed,
    whole_ends,
    word_of,
)
from tracetorch.fuse.ir.graph import BOOLEAN, Line
from tracetorch.fuse.ir.graph import Value as GraphValue
from tracetorch.fuse.ir.intervals import Interval


@dataclass(frozen=True, eq=False)
class Circuit:
    """Combinational circuit of one step of one neuron.

    Args:
        path: of the module that it belongs to.
        reads: the words that it reads, by the names of the stage.
        writes: those that it writes.
        port_names: the identifiers of both in Verilog.
        inputs: the wires of what it reads.
        ends: the wires of what it writes.
    """

    path: str
    reads: Mapping[str, Word]
    writes: Mapping[str, Word]
    port_names: Mapping[str, str]
    inputs: Mapping[str, Wire]
    ends: Mapping[str, Wire]

    @property
    def wires(self) -> tuple[Wire, ...]:
        """The wires that what it writes depends on, in order."""
        return tuple(needed(list(self.ends.values())))


def step_circuit(stage: Pointwise, widths: Widths) -> Circuit:
    return _Lines(stage, widths).circuit()


def word_of_array(array: Array, widths: Widths) -> Word:
    return word_of(widths.ranges[array], widths.points.get(array, 0), array.boolean)


class _Lines(IntegerLines):
    """Append the lines of a stage as wires."""

    def __init__(self, stage: Pointwise, widths: Widths) -> None:
        super().__init__(stage, widths)
        self.w, self.values = Wires(RULES), {}
        self.lines: dict[Any, Line] = {line.name: line for line in stage.graph.lines}
        self.names: dict[tuple[Any, ...], str] = {
            (line.op, *line.args): line.name for line in stage.graph.lines
        }

    def circuit(self) -> Circuit:
        stage, widths = self.stage, self.widths
        for name, view in stage.reads.items():
            point = widths.points.get(view.array, 0)
            span = (0, 1) if view.array.boolean else whole_ends(widths.ranges[view.array], point)
            wire = self.w.read(name, *span)
            powers = _powers(view.array, point)
            if len(powers) > 1:
                wire = _power_of_two(self.w, wire, powers)
            self.values[name] = self.loaded(wire, view.array)
        for line in stage.graph.lines:
            self.values[line.name] = self.line(line)
        ends = {
            name: self.w.make("add", self.stored(stage.graph.outputs[name]), 0)
            for name in stage.writes
        }
        ends = _simple(ends)
        read = {wire.name: wire for wire in needed(list(ends.values())) if wire.op == "read"}
        reads, writes = (
            {name: word_of_array(view.array, widths) for name, view in views.items()}
            for views in (stage.reads, stage.writes)
        )
        return Circuit(stage.path, reads, writes, _port_names(stage), read, ends)

    # Lines

    def line(self, line: Line) -> Number:
        """Append a line; return its number, a constant where its interval is one value."""
        span = self.table[line.name]
        if _one_value(span):
            value = float(np.min(span.low))
            return self.operand(bool(value) if line.op in BOOLEAN else value)
        if line.op == "where":
            condition = self.operand(line.args[0]).value
            if not isinstance(condition, Wire):
                return self.operand(line.args[1 if condition else 2])
        number = self._multiplied(line) or super().line(line)
        if number.divisor is None and isinstance(number.value, Wire) and np.all(span.exact):
            return replace(number, value=self._narrowed(number.value, span, number.point))
        return number

    def _multiplied(self, line: Line) -> Number | None:
        """Return the last line of ``tt.integers.multiply`` as one product, then shifted."""

        def traced(op: str, *args: GraphValue | None) -> str | None:
            return self.names.get((op, *args))

        whole = self.lines.get(line.args[0])
        parts = whole and self.lines.get(whole.args[0])
        scaled = parts and self.lines.get(parts.args[0])
        if not (whole and parts and scaled) or parts.op not in ("trunc", "floor"):
            return None
        if (line.op, whole.op, scaled.op) != ("add", "mul", "mul"):
            return None
        x, scale, y = *scaled.args, whole.args[1]
        k = 1 - math.frexp(scale)[1] if isinstance(scale, float) else 0
        if k < 1 or scale != 2.0**-k:
            return None
        most = 2.0**k - 1
        rest = traced("sub", x, traced("mul", parts.name, 2.0**k))
        rest = traced("min", most, traced("max", -most if parts.op == "trunc" else 0.0, rest))
        product = traced("mul", traced("mul", rest, y), scale)
        rounded = traced(parts.op, product)
        up = traced("float", traced("ge", traced("sub", product, rounded), 0.5))
        nearest = line.args[1] == traced("add", rounded, up)
        one, other = self._whole(self.operand(x)), self._whole(self.operand(y))
        if not (nearest or line.args[1] == rounded) or one.point or other.point:
            return None
        found = self.op("mul", one.value, other.value)
        if nearest:
            found = self.op("add", found, 1 << (k - 1))
        return Number(self.op("div" if parts.op == "trunc" else "quotient", found, 1 << k))

    def stored(self, value: GraphValue) -> Any:
        """Return the integer that is stored for a value."""
        result = self._whole(self.operand(value))
        # a multiple of 2^point, for which every rounding is the same
        return self._value(self.w.make("shr", _given(result.value), k=result.point))

    def operand(self, value: GraphValue) -> Number:
        """Return the number of a value; of a constant without zeros behind its point."""
        number = super().operand(value)
        while number.point and not isinstance(number.value, Wire) and not number.value % 2:
            number = replace(number, value=number.value // 2, point=number.point - 1)
        return number

    def _narrowed(self, wire: Wire, span: Interval, point: int) -> Any:
        if not np.all(np.isfinite(span.low) & np.isfinite(span.high)):
            return wire
        return self._value(self.w.narrow(wire, *whole_ends(span, point)))

    def _value(self, wire: Wire) -> Any:
        return wire.low if wire.constant else wire

    # Operations

    def truth(self, op: str, *args: Any) -> Any:
        """Append a comparison, or an operation on truth values."""
        w, given = self.w, [_given(arg) for arg in args]
        if op in ("gt", "le"):  # of the two in the other order
            op, given = {"gt": "lt", "le": "ge"}[op], given[::-1]
        opposite = {"ge": "lt", "ne": "eq"}.get(op)
        found = w.opposite(w.make(opposite, *given)) if opposite else w.make(op, *given)
        return bool(found.low) if found.constant else found

    def op(self, op: str, *args: Any, like: Interval | None = None, point: int = 0) -> Any:
        w, given = self.w, [_given(arg) for arg in args]
        wires = [w.const(each) if isinstance(each, int) else each for each in given]
        first = wires[0]
        if op == "float":
            found = first
        elif op == "neg":
            found = w.negative(first)
        elif op == "abs":
            found = w.absolute(first)
        elif op == "where":
            found = w.make("mux", *wires)
        elif op in ("max", "min"):
            found = (w.largest if op == "max" else w.least)(*wires)
        elif op in ("shift", "div", "quotient"):
            found = self._divided(op, first, wires[1])
        else:
            found = w.make(op, *wires)
        return self._value(found)

    def _divided(self, op: str, value: Wire, by: Wire) -> Wire:
        """Return a quotient rounded down, or towards zero for ``div``."""
        w = self.w
        if op == "shift":
            return w.make("shr", value, k=by.low)
        k = by.low.bit_length() - 1
        if by.op == "const" and by.low == 1 << k:
            down = w.make("shr", value, k=k)
            if op == "quotient" or value.low >= 0:
                return down
            # one more than rounded down, where a negative number lost bits
            lost = w.opposite(w.make("eq", w.make("low", value, k=k), 0))
            return w.make("add", down, w.make("and", w.make("lt", value, 0), lost))
        if op == "quotient" or value.low >= 0:
            return _quotient(w, value, by)
        negative = w.make("lt", value, 0)
        magnitude = _quotient(w, w.absolute(value), by)
        return w.make("mux", negative, w.negative(magnitude), magnitude)


def _one_value(span: Interval) -> bool:
    low, high = float(np.min(span.low)), float(np.max(span.high))
    return low == high and np.isfinite(low) and bool(np.all(span.exact))


def _given(value: Any) -> Wire | int:
    """Return an operand as a wire, or as an integer where it is a constant."""
    return value if isinstance(value, Wire) else int(value)


def _quotient(w: Wires, value: Wire, by: Wire) -> Wire:
    most = max(value.high // by.low, -(value.low // by.low), 1)
    return w.make("quotient", value, by, k=most.bit_length())


def _powers(array: Array, point: int) -> tuple[int, ...]:
    """Return the exponents of a table of powers of two; none where it holds anything else."""
    if array.role is not Role.TABLE or array.boolean:
        return ()
    values = {*(array.values.double() * 2.0**point).flatten().tolist()}
    if any(value < 1 or math.frexp(value)[0] != 0.5 for value in values):
        return ()
    return tuple(sorted(math.frexp(value)[1] - 1 for value in values))


def _power_of_two(w: Wires, read: Wire, powers: tuple[int, ...]) -> Wire:
    """Return what is read as shifts of 1: of its exponent, each bit is that one of some is set."""
    least = powers[0]
    found = w.make("shl", 1, k=least)
    for place in range((powers[-1] - least).bit_length()):
        has = w.const(0)
        for power in powers:
            if (power - least) >> place & 1:
                has = w.make("or", has, w.bit(read, power))
        found = w.make("mux", has, w.make("shl", found, k=1 << place), found)
    return found


def _port_names(stage: Pointwise) -> dict[str, str]:
    names: dict[str, str] = {}
    for letter, views in (("r", stage.reads), ("w", stage.writes)):
        for number, name in enumerate(views):
            own = re.fullmatch(r"[a-z]?[0-9]+", name) is not None
            names[name] = f"{letter}_{name}" if own else f"{letter}_x{number}"
    return names


def _simple(ends: Mapping[str, Wire]) -> dict[str, Wire]:
    """Return wires without quotients, by the rules of the last pass."""
    w, made = Wires(LAST_RULES), dict[int, Wire]()
    for wire in needed(list(ends.values())):
        args = [made[arg.number] for arg in wire.args]
        if wire.op == "read":
            found = w.read(wire.name, wire.low, wire.high)
        elif wire.op == "const":
            found = w.const(wire.k)
        elif wire.op == "quotient":
            found = _restoring(w, args[0], args[1], wire.k)
        else:
            found = w.make(wire.op, *args, k=wire.k)
        made[wire.number] = w.narrow(found, wire.low, wire.high)
    return {name: made[wire.number] for name, wire in ends.items()}


def _restoring(w: Wires, value: Wire, by: Wire, k: int) -> Wire:
    """Return a quotient bit by bit, from the highest: where the divisor fits, it is subtracted."""
    negative = w.make("lt", value, 0)
    # rounded down: the quotient of -1 - x is -1 less that of x
    rest = w.make("mux", negative, w.make("sub", -1, value), value)
    found = w.const(0)
    for place in reversed(range(k)):
        shifted = w.make("shl", by, k=place)
        less = w.make("lt", rest, shifted)
        rest = w.make("mux", less, rest, w.make("sub", rest, shifted))
        rest = w.narrow(rest, 0, rest.high)
        found = w.make("add", w.make("shl", found, k=1), w.opposite(less))
    return w.make("mux", negative, w.make("sub", -1, found), found)
