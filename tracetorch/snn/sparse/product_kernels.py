"""Kernels of a product over a list of edges, in LLVM IR: outputs, and both of its gradients.

Inputs are a window ``[reach + steps, samples, inputs]``, outputs ``[steps, samples, outputs]``; an
edge with a delay of ``d`` steps leads from time ``t`` of the window to step ``t + d - reach``.
Every sum has one order, whatever the tasks are: an output is added to by time, source and then
edge; a weight's gradient by time and then sample; an input's by edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value

LANES = 16  # times of the window whose gradients are in a register at once


@contextmanager
def _events(k: TaskWriter, line: Array, first: Value, last: Value) -> Iterator[Value]:
    """Run what is written inside for the index of each value that is not 0; NaN is none."""

    def marks(values: Value) -> list[Value]:
        mask = k.convert("bitcast", values.differs(0.0), "i16")
        return [k.convert("zext", mask, WORD)]

    exact = Value(k, "true", "i1")
    with k.loop(first, last, step=LANES) as block:
        left = last - block.index
        (found,) = k.choose(
            left >= LANES,
            lambda: marks(line.vector(block.index, LANES)),
            lambda: marks(line.some(block.index, left, LANES)),
        )
        with k.repeat(lambda carried: carried[0].differs(0), found) as bit:
            (mask,) = bit.carried
            yield block.index + k.intrinsic("llvm.cttz.i64", WORD, mask, exact)
            bit.next = (mask & (mask - 1),)


class _SourceEdges:
    """Edges by source: where those of a source begin, their targets, places in the weight, delays.

    Without delays the reach is 0; edges that are given in this order have the place of their own.
    """

    def __init__(self, k: TaskWriter, delayed: bool, ordered: bool) -> None:
        self.k, self.starts, self.targets = k, k.array(WORD), k.array("i32")
        self.order = k.array("i32") if ordered else None
        self.delays = k.array("i32") if delayed else None

    @contextmanager
    def of(self, source: Value) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for each edge of a source, and its place in the weight."""
        with self.k.loop(self.starts[source], self.starts[source + 1]) as edge:
            yield edge.index, edge.index if self.order is None else self.order[edge.index]

    @contextmanager
    def reached(self, edge: Value, time: Value, ends: tuple[Value, ...]) -> Iterator[Value]:
        """Run what is written inside for the step that an edge leads to, if it does.

        ``ends`` are the first step, that behind the last one, and the reach.
        """
        first, last, reach = ends
        if self.delays is None:
            yield time
            return
        step = time + self.delays[edge] - reach
        with self.k.when((step >= first) & (step < last)):
            yield step


def sparse_forward(k: TaskWriter, real: str, delayed: bool, ordered: bool) -> None:
    """Add to some steps of the outputs of a sample."""
    per_task, steps, samples, reach, inputs, outputs = k.integers(6)
    window, weight, y = k.array(real), k.array(real), k.array(real)
    edges = _SourceEdges(k, delayed, ordered)
    sample, first = k.number % samples, k.number // samples * per_task
    last = k.least(first + per_task, steps)
    zero = k.literal(0, WORD)
    with k.loop(first, last + reach) as time:
        line = window.at((time.index * samples + sample) * inputs)
        with _events(k, line, zero, inputs) as source:
            value = line[source]
            with edges.of(source) as (edge, at):
                product = value * weight[at]
                with edges.reached(edge, time.index, (first, last, reach)) as step:
                    place = (step * samples + sample) * outputs + edges.targets[edge]
                    y[place] = y[place] + product


def sparse_by_weight(k: TaskWriter, real: str, delayed: bool, ordered: bool) -> None:
    """Add to the gradient of the weights of some sources, where they are not 0."""
    per_task, steps, samples, reach, inputs, outputs = k.integers(6)
    window, grads, total = k.array(real), k.array(real), k.array(real)
    edges = _SourceEdges(k, delayed, ordered)
    first, zero = k.number * per_task, k.literal(0, WORD)
    last = k.least(first + per_task, inputs)
    with k.loop(0, steps + reach) as time, k.loop(0, samples) as sample:
        line = window.at((time.index * samples + sample.index) * inputs)
        with _events(k, line, first, last) as source:
            value = line[source]
            with (
                edges.of(source) as (edge, at),
                edges.reached(edge, time.index, (zero, steps, reach)) as step,
            ):
                row = grads.at((step * samples + sample.index) * outputs)
                total[at] = total[at] + value * row[edges.targets[edge]]


def sparse_by_window(k: TaskWriter, real: str, delayed: bool, ordered: bool) -> None:
    """Write the gradient of some times of a sample: all of them at once, by edge.

    Weights are sorted as the edges are, for every one is read. The gradients of the outputs are
    copied to ``table``, in which those of one output at the steps that these times reach are
    neighbours.
    """
    steps, samples, reach, inputs, outputs = k.integers(5)
    grads, weight, window = k.array(real), k.array(real), k.array(real)
    edges = _SourceEdges(k, delayed, ordered)
    table, sums = k.scratch(real), k.scratch(real)
    sample, first = k.number % samples, k.number // samples * LANES
    times = k.least(steps + reach - first, LANES)
    width = reach + LANES
    with k.loop(0, width) as lane:
        step = first + lane.index - reach
        is_step = (step >= 0) & (step < steps)

        def copied(step: Value = step, lane: Value = lane.index) -> list[Value]:
            row = grads.at((step * samples + sample) * outputs)
            with k.loop(0, outputs) as output:
                table[output.index * width + lane] = row[output.index]
            return []

        def cleared(lane: Value = lane.index) -> list[Value]:
            with k.loop(0, outputs) as output:
                table[output.index * width + lane] = 0.0
            return []

        k.choose(is_step, copied, cleared)
    with k.loop(0, inputs) as source:
        none = k.literal(0.0, f"<{LANES} x {real}>")
        first_edge, end = edges.starts[source.index], edges.starts[source.index + 1]
        with k.loop(first_edge, end, none) as edge:
            place = edges.targets[edge.index] * width
            if edges.delays is not None:
                place = place + edges.delays[edge.index]
            factor = k.spread(weight[edge.index], LANES)
            edge.next = (edge.carried[0] + factor * table.vector(place, LANES),)
        sums.store(0, edge.carried[0])
        with k.loop(0, times) as lane:
            row = (first + lane.index) * samples + sample
            window[row * inputs + source.index] = sums[lane.index]
