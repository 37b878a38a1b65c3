"""Multiply rows of one step by square matrices in LLVM IR, by their events or densely.

A matrix comes in panels: all rows of its first columns, then all rows of the next ones, the last
padded with zeros. The sums of a panel stay in registers. Four rows share what is read of the
matrix, unless most of their values are zero. Rows are the inner loop, so that a panel stays in the
cache. Contraction is allowed, unlike in a step: no sum of products has an order that is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value, Writer, below

DENSE = 0.4  # share of values that are not zero from which the dense product is faster
_QUAD = 4  # rows that are multiplied together
_ARGUMENTS = ("rows", "size", "first", "count", "matrices", "step")


def product_source(real: str, panel: int, narrow: int) -> tuple[list[str], set[str]]:
    """Return the function ``@multiply``, and LLVM's own ones that it calls.

    Its arguments are pointers to ``source``, ``matrix`` and ``target``, then integers: ``rows`` of
    ``size`` values, the ``first`` and the ``count`` of the ``matrices`` that are read, and from the
    target of one of them to that of the next, a ``step``.
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
