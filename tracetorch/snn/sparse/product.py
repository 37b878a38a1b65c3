"""Multiply inputs by the weights of edges: ``product``, and its derivatives of any order.

Let ``sum w[e] x[t, source] g[t + d, target]`` be over all edges. The output is its derivative by
``g``, the gradients of inputs and weights are those by ``x`` and ``w``: so the backward pass of
each of the three has the other two. Whoever must see every operation gets PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import has_values, is_tracing, noticed, observed_by
from tracetorch.fuse import requested_backend
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.machine_code import unavailable_reason
from tracetorch.fuse.runtime.sparse_segments import Edges
from tracetorch.fuse.runtime.threads import run_written, shared_out

_VALUES = 1 << 23  # of a chunk, where PyTorch's operations hold one for every edge and row
_LEAST_STEPS = 8  # of a task with delays, which reads ``reach`` more
_TASKS_PER_THREAD = 4
LANES = 16  # times of the window whose gradients are in a register at once
_PLAIN = (torch.float32, torch.float64)


class EdgeWiring(NamedTuple):
    """Edges of a product, their delays, and how many inputs and outputs there are."""

    edges: Tensor  # ``[2, E]``, sources and targets
    delays: Tensor | None  # ``[E]``; ``None``: an edge leads to the same row, and ``reach`` is 0
    reach: int  # the largest delay
    inputs: int
    outputs: int
    plan: Edges | None  # the edges by source; ``None`` where no kernel may run


def product(wiring: EdgeWiring, window: Tensor, weight: Tensor) -> Tensor:
    """Return ``[steps, samples, outputs]`` of a window ``[reach + steps, samples, inputs]``."""
    return _derivative(_GRADS, wiring, window, weight)


# what the sum is of, and so what a derivative of it is by
_WINDOW, _WEIGHT, _GRADS = range(3)


def _derivative(by: int, wiring: EdgeWiring, *others: Tensor) -> Tensor:
    """Return the derivative of the sum by one of the three, from the others in their order."""
    observed = torch.compiler.is_compiling() or observed_by(others) is not None
    if observed or not all(map(has_values, others)):  # those of is_grads_batched have none
        return _PLAINLY[by](wiring, *others)
    return _Derivative.apply(by, wiring, *others)  # type: ignore[no-any-return, no-untyped-call]


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by: int, wiring: EdgeWiring, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others, *noticed(wiring.edges, wiring.delays))
        ctx.by, ctx.wiring = by, wiring
        plan = _kernel_plan(wiring, *others)
        if plan is None:
            return _PLAINLY[by](wiring, *others)
        return _BY_KERNEL[by](wiring, plan, *(each.contiguous() for each in others))

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        known = list(ctx.saved_tensors[:2])
        known.insert(ctx.by, grads)
        found: list[Tensor | None] = [None, None]
        wanted = iter(ctx.needs_input_grad[2:])
        for one in sorted({_WINDOW, _WEIGHT, _GRADS} - {ctx.by}):
            others = known[:one] + known[one + 1 :]
            found.append(_derivative(one, ctx.wiring, *others) if next(wanted) else None)
        return tuple(found)


# By kernels


def _kernel_plan(wiring: EdgeWiring, *tensors: Tensor) -> Edges | None:
    """Return what a kernel reads; ``None`` where there is none for these tensors."""
    dtype = tensors[0].dtype
    has_kernel = (
        all(t.is_cpu and t.dtype == dtype and t.layout == torch.strided for t in tensors)
        and dtype in _PLAIN
        and requested_backend() != "eager"
        and unavailable_reason() is None
    )
    return wiring.plan if has_kernel else None


def _run(
    write: Callable[..., None],
    plan: Edges,
    tasks: int,
    sizes: tuple[int, ...],
    *arrays: Tensor,
    work: int,
    scratch: tuple[int, ...] = (),
) -> None:
    """Run a kernel; the lists of edges come behind its sizes and arrays."""
    lists = [plan.targets, *(each for each in (plan.order, plan.delays) if each is not None)]
    letters = "i" * len(sizes) + "r" * len(arrays) + "l" + "n" * len(lists)
    given: tuple[int | Tensor, ...] = (*sizes, *arrays, plan.starts, *lists)
    dtype, form = arrays[0].dtype, (plan.delays is not None, plan.order is not None)
    run_written(write, letters, dtype, tasks, *given, work=work, scratch=scratch, form=form)


def _kernel_forward(wiring: EdgeWiring, plan: Edges, window: Tensor, weight: Tensor) -> Tensor:
    samples, reach = window.shape[1], wiring.reach
    steps = len(window) - reach
    y = large_empty((steps, samples, wiring.outputs), window.dtype).zero_()
    # samples are tasks first, for each block of steps reads those before it too
    blocks = -(-_TASKS_PER_THREAD * torch.get_num_threads() // samples) if samples else 1
    per_task = max(-(-steps // blocks), _LEAST_STEPS if reach else 1, reach)
    tasks = -(-steps // per_task) * samples
    sizes = per_task, steps, samples, reach, wiring.inputs, wiring.outputs
    work = steps * samples * (wiring.inputs + len(weight) // 32)
    _run(sparse_forward, plan, tasks, sizes, window, weight, y, work=work)
    return y


def _kernel_by_weight(wiring: EdgeWiring, plan: Edges, window: Tensor, grads: Tensor) -> Tensor:
    steps, samples, _ = grads.shape
    total = large_empty((wiring.edges.shape[1],), window.dtype).zero_()
    per_task, tasks = shared_out(-(-wiring.inputs // LANES), 1)
    sizes = per_task * LANES, steps, samples, wiring.reach, wiring.inputs, wiring.outputs
    work = len(window) * samples * (wiring.inputs + len(total) // 32)
    _run(sparse_by_weight, plan, tasks, sizes, window, grads, total, work=work)
    return total


def _kernel_by_window(wiring: EdgeWiring, plan: Edges, weight: Tensor, grads: Tensor) -> Tensor:
    if plan.order is not None:
        weight = weight.index_select(0, plan.order)
    steps, samples, outputs = grads.shape
    length, size = steps + wiring.reach, grads.dtype.itemsize
    window = large_empty((length, samples, wiring.inputs), grads.dtype)
    _run(
        sparse_by_window,
        plan,
        -(-length // LANES) * samples,
        (steps, samples, wiring.reach, wiring.inputs, outputs),
        *(grads, weight, window),
        work=length * samples * len(weight),
        scratch=(outputs * (wiring.reach + LANES) * size, LANES * size),
    )
    return window


# Kernels, in LLVM IR
#
# An edge with a delay of ``d`` steps leads from time ``t`` of the window to step ``t + d - reach``.
# Every sum has one order, whatever the tasks are: an output is added to by time, source and then
# edge; a weight's gradient by time and then sample; an input's by edge.


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
    """Edges by source: where they begin, targets, places in the weight, delays; reach 0 without."""

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
        """Run what is inside for the step that an edge leads to, if it is one of ``ends``."""
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

    Weights are sorted as the edges are. Gradients of the outputs are copied to ``table``, in which
    those of one output at the steps that these times reach are neighbours.
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


# By operations of PyTorch's


def _carried(
    wiring: EdgeWiring, window: Tensor, steps: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some edges at a time, their targets, and what each carries ``[steps, samples, E]``."""
    edges, delays = wiring.edges, wiring.delays
    size = count = edges.shape[1]
    if torch.compiler.is_compiling() or is_tracing():
        # a program is one whatever the batch is, and ONNX has indices of 64 bits alone
        edges = edges.long()
    else:
        size = max(1, _VALUES // max(1, steps * window.shape[1]))
    for start in range(0, count, max(1, size)):
        some = slice(start, start + size)
        sources, targets = edges[:, some]
        if delays is None:
            yield some, targets, window.index_select(-1, sources)
            continue
        time = torch.arange(steps, device=edges.device).unsqueeze(1)
        time = time + (wiring.reach - delays[some].long())
        yield some, targets, window[time, :, sources.long()].movedim(-1, 1)


def _plain_forward(
    wiring: EdgeWiring, window: Tensor, weight: Tensor, skips: bool = True
) -> Tensor:
    steps = window.shape[0] - wiring.reach
    y = window.new_zeros(steps, window.shape[1], wiring.outputs)
    for some, targets, inputs in _carried(wiring, window, steps):
        factors = weight[some]
        if skips:  # what is 0 carries nothing, whatever the weight is
            factors = torch.where((inputs == 0) & ~factors.isfinite(), 0.0, factors)
        y = y.index_add(-1, targets, inputs * factors)
    return y


def _plain_by_weight(wiring: EdgeWiring, window: Tensor, grads: Tensor) -> Tensor:
    parts = [
        (inputs * grads.index_select(-1, targets)).sum((0, 1))
        for _, targets, inputs in _carried(wiring, window, len(grads))
    ]
    return torch.cat(parts) if parts else window.new_zeros(0)


def _plain_by_window(wiring: EdgeWiring, weight: Tensor, grads: Tensor) -> Tensor:
    """Carry the gradients back, along edges from their targets to their sources."""
    edges, delays, reach, inputs, outputs, _ = wiring
    back = None if delays is None else reach - delays
    turned = EdgeWiring(edges.flip(0), back, reach, outputs, inputs, None)
    around = (0, 0, 0, 0, reach, reach)
    return _plain_forward(turned, nn.functional.pad(grads, around), weight, skips=False)


_PLAINLY: tuple[Callable[..., Tensor], ...] = (_plain_by_window, _plain_by_weight, _plain_forward)
_BY_KERNEL: tuple[Callable[..., Tensor], ...] = (
    *(_kernel_by_window, _kernel_by_weight),
    _kernel_forward,
)
