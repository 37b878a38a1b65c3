"""Kernels of products with events, in LLVM IR: scan for events, sort lists of them, gather rows.

``starts[row]`` is where the list of a row begins in ``indices``, the columns of its events, and in
``values``, which is read where ``weighted``: not all are 1. Tables have rows of ``width``, a
multiple of 16; a task is ``per_task`` rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value, Writer, below

LANES = 16  # the width of a table is a multiple of it
_BLOCKS = (128, 64, 32, 16)  # columns whose sums are in registers at once: the widest that fits


# Lists of events


def scan(k: TaskWriter, real: str) -> None:
    """Mark and count events of rows, 16 to a mask, NaN too; ``weighted``: a value is not 1."""
    per_task, rows, columns = k.integers(3)
    x, masks, counts, weighted = k.array(real), k.array("i16"), k.array(WORD), k.array(WORD)
    per_row, rest = (columns + 15) // 16, columns % 16
    zero = k.literal(0, WORD)

    def bits(mask: Value) -> Value:
        return k.convert("zext", k.convert("bitcast", mask, "i16"), WORD)

    first = k.number * per_task
    with k.loop(first, k.least(first + per_task, rows), zero) as row:
        line, marks = x.at(row.index * columns), masks.at(row.index * per_row)
        with k.loop(0, columns - rest, zero, *row.carried, step=16) as block:
            count, others = block.carried
            values = line.vector(block.index, 16)
            mask = bits(values.differs(0.0))
            marks[block.index >> 4] = mask
            found = k.intrinsic("llvm.ctpop.i64", WORD, mask)
            block.next = count + found, others | (mask & bits(values.differs(1.0)))
        count, others = block.carried

        def overlapping(line: Array = line) -> list[Value]:
            """Read the last 16 values, of which the first were read before."""
            values = line.vector(columns - 16, 16)
            mask = bits(values.differs(0.0))
            return [mask >> (rest * -1 + 16), mask & bits(values.differs(1.0))]

        def one_by_one(line: Array = line) -> list[Value]:
            with k.loop(columns - rest, columns, zero, zero) as one:
                mask, others = one.carried
                value = line[one.index]
                event = k.convert("zext", value.differs(0.0), WORD)
                other = k.convert("zext", value.differs(1.0), WORD)
                one.next = mask | (event << (one.index & 15)), others | (event & other)
            return list(one.carried)

        mask, last_others = k.choose(columns >= 16, overlapping, one_by_one)
        with k.when(rest.differs(0)):
            marks[per_row - 1] = mask
        counts[row.index] = count + k.intrinsic("llvm.ctpop.i64", WORD, mask)
        row.next = (others | last_others,)
    with k.when(row.carried[0].differs(0)):
        weighted[0] = 1


def fill(k: TaskWriter, real: str) -> None:
    """Write the lists of some rows, with their values where ``weighted``."""
    per_task, rows, columns = k.integers(3)
    x, masks, starts, indices = k.array(real), k.array("i16"), k.array(WORD), k.array("i32")
    values, weighted = k.array(real), k.integer().differs(0)
    per_row = (columns + 15) // 16
    last = Value(k, "true", "i1")
    first = k.number * per_task
    with k.loop(first, k.least(first + per_task, rows)) as row:
        line, marks = x.at(row.index * columns), masks.at(row.index * per_row)
        with k.loop(0, per_row, starts[row.index]) as word:
            here = (marks[word.index], *word.carried)
            with k.repeat(lambda carried: carried[0].differs(0), *here) as bit:
                mask, event = bit.carried
                column = word.index * 16 + k.intrinsic("llvm.cttz.i64", WORD, mask, last)
                indices[event] = column
                with k.when(weighted):
                    values[event] = line[column]
                bit.next = mask & (mask - 1), event + 1
            word.next = (bit.carried[1],)


def sort(k: TaskWriter, real: str) -> None:
    """Sort the events of some rows, a task of them at a time, by column.

    ``sources`` are then the rows of a column's events, ``scales`` their values, and
    ``ends[task * (columns + 1) + column]`` is where the list of a column ends.
    """
    per_task, rows, columns = k.integers(3)
    starts, indices, values = k.array(WORD), k.array("i32"), k.array(real)
    weighted, all_ends = k.integer().differs(0), k.array(WORD)
    sources, scales = k.array("i32"), k.array(real)
    begin = k.number * per_task
    end = k.least(begin + per_task, rows)
    ends = all_ends.at(k.number * (columns + 1))
    with k.loop(0, columns + 1) as column:
        ends[column.index] = 0
    with k.loop(starts[begin], starts[end]) as event:
        entry = indices[event.index] + 1
        ends[entry] = ends[entry] + 1
    with k.loop(0, columns + 1, starts[begin]) as column:
        place = column.carried[0] + ends[column.index]
        ends[column.index] = place
        column.next = (place,)
    # an entry is where its list begins by now, and goes on to where it ends
    with k.loop(begin, end) as row, k.loop(starts[row.index], starts[row.index + 1]) as event:
        entry = indices[event.index]
        place = ends[entry]
        ends[entry] = place + 1
        sources[place] = row.index
        with k.when(weighted):
            scales[place] = values[event.index]


# Sums of rows


class Lists(NamedTuple):
    """Lists of events: rows of a table, and the values, which are read where ``weighted``."""

    indices: Array
    values: Array
    weighted: Value


Gather: TypeAlias = Callable[[Array, Array, Array, Value, Value], None]
"""Writes ``out = start + sum(value * table[index * width])`` over the events of a list: called with
``out``, ``start``, ``table``, and where the list begins and ends."""


class Gathers:
    """The functions that sum rows of a table by event: one for each width, with weights and not."""

    def __init__(self, k: TaskWriter, real: str) -> None:
        self.k = k
        for lanes in _BLOCKS:
            for weighted in (False, True):
                self._write(lanes, weighted, real)

    def widest(self, left: Value, lists: Lists, width: Value) -> tuple[Gather, Value]:
        """Return the widest one that ``left`` columns have room for, and how many it sums."""
        k = self.k
        function, lanes = self._named(_BLOCKS[-1], lists.weighted), k.literal(_BLOCKS[-1], WORD)
        for wider in reversed(_BLOCKS[:-1]):
            fits = left >= wider
            function = k.select(fits, self._named(wider, lists.weighted), function, "ptr")
            lanes = k.select(fits, wider, lanes)

        def gather(out: Array, start: Array, table: Array, first: Value, last: Value) -> None:
            pointers = (out, start, table, lists.indices, lists.values)
            arguments = [*(array.pointer for array in pointers), first, last, width]
            k.line(f"call void {function.text}({', '.join(map(str, arguments))})")

        return gather, lanes

    def _named(self, lanes: int, weighted: Value) -> Value:
        plain, scaled = (Value(self.k, f"@gather_{lanes}_{n}", "ptr") for n in (0, 1))
        return self.k.select(weighted, scaled, plain, "ptr")

    def _write(self, lanes: int, weighted: bool, real: str) -> None:
        """Write a function whose sums stay in registers."""
        g = Writer()
        out, start, table, indices, values = (
            Array(Value(g, f"%{name}", "ptr"), element)
            for name, element in (
                *(("out", real), ("start", real), ("table", real)),
                *(("indices", "i32"), ("values", real)),
            )
        )
        first, last, width = (Value(g, f"%{name}", WORD) for name in ("first", "last", "width"))
        with g.loop(first, last, start.vector(0, lanes)) as event:
            row = table.vector(indices[event.index] * width, lanes)
            if weighted:
                row = row * g.spread(values[event.index], lanes)
            event.next = (event.carried[0] + row,)
        out.store(0, event.carried[0])
        g.line("ret void")
        pointers = "ptr %out, ptr %start, ptr %table, ptr %indices, ptr %values"
        head = f"void @gather_{lanes}_{int(weighted)}"
        self.k.function(f"{head}({pointers}, i64 %first, i64 %last, i64 %width)", g)


# A linear layer


def forward(k: TaskWriter, real: str) -> None:
    """Write some rows of the output: the bias, and rows of the transposed weight."""
    per_task, rows = k.integers(2)
    starts = k.array(WORD)
    lists = Lists(k.array("i32"), k.array(real), k.integer().differs(0))
    table, bias, width, out = k.array(real), k.array(real), k.integer(), k.array(real)
    gathers = Gathers(k, real)
    first = k.number * per_task
    last = k.least(first + per_task, rows)
    # columns are the outer loop, so that those of the table stay in cache
    with k.repeat(below(width), k.literal(0, WORD)) as block:
        column = block.index
        gather, lanes = gathers.widest(width - column, lists, width)
        initial, source = bias.at(column), table.at(column)
        with k.loop(first, last) as row:
            ends = starts[row.index], starts[row.index + 1]
            gather(out.at(row.index * width + column), initial, source, *ends)
        block.next = (column + lanes,)


def backward(k: TaskWriter, real: str) -> None:
    """Add to some rows of the transposed weight's gradient: gradients of the output, by event.

    Chunk by chunk of rows, whose gradients stay in cache, and whose sums are rounded apart.
    """
    per_task, columns, chunks, per_chunk = k.integers(4)
    starts, all_ends = k.array(WORD), k.array(WORD)
    lists = Lists(k.array("i32"), k.array(real), k.integer().differs(0))
    grads, width, out = k.array(real), k.integer(), k.array(real)
    gathers = Gathers(k, real)
    first = k.number * per_task
    last = k.least(first + per_task, columns)
    with k.loop(0, chunks) as chunk:
        ends = all_ends.at(chunk.index * (columns + 1))
        before = starts[chunk.index * per_chunk]
        # where the list of the first row begins
        (begun,) = k.choose(first.equals(0), lambda: [before], lambda: [ends[first - 1]])
        with k.repeat(below(width), k.literal(0, WORD)) as block:
            column = block.index
            gather, lanes = gathers.widest(width - column, lists, width)
            source, target = grads.at(column), out.at(column)
            with k.loop(first, last, begun) as row:
                begin, end = row.carried[0], ends[row.index]
                with k.when(begin < end):
                    sums = target.at(row.index * width)
                    gather(sums, sums, source, begin, end)
                row.next = (end,)
            block.next = (column + lanes,)
