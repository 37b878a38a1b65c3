"""Run a layer's ``step`` over a whole sequence with its output fed back along a list of edges.

``snn.Recurrent`` with a plain ``snn.SparseLinear`` is one loop over time
(``tracetorch/fuse/codegen/sparse_loop.py``) where the neurons spike: their outputs are 0 or 1 by
the operation that makes them. They may be of several kinds, side by side. What else there is runs
step by step. Two calls share it: one takes and returns tensors with a value for every step and
neuron, and one neither, where these would not fit into memory (:class:`Request`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.torch_private import noticed, observed_by, saved_tensors, unsafe_view
from tracetorch.fuse.dispatch.operators import incoming_gradients, no_second_gradient
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.ir.plan import Plan, RecurrentPlan
from tracetorch.fuse.runtime import sparse_recurrence
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.backend import Grads
from tracetorch.fuse.runtime.sparse_recurrence import (
    Edges,
    Gradients,
    Kept,
    Layout,
    Loop,
    Part,
    Population,
    Rows,
    Sequences,
    Wanted,
    all_spikes_of,
    events_of,
    spikes_of,
)


class Kind(NamedTuple):
    """Neurons of one kind, before the first step."""

    cell: Cell
    states: Sequence[Tensor | None]  # those before the first step, as ``step`` takes them
    kwargs: dict[str, Any]  # the step kwargs

    @property
    def active(self) -> list[Tensor]:
        """States that there are."""
        return [state for state in self.states if state is not None]

    @property
    def tensors(self) -> list[Tensor]:
        """States and parameters."""
        values = self.kwargs.values()
        return [*self.active, *(value for value in values if isinstance(value, Tensor))]


class Recurrence(NamedTuple):
    """Neurons in a loop along edges, before the first step."""

    kinds: Sequence[Kind]  # side by side, those of each follow each other
    first: Tensor
    """Outputs before the first step, as many as the largest delay and one, the oldest first."""
    weight: Tensor  # of each edge, in the order in which the layer has them
    bias: Tensor | None
    edges: Callable[[Layout], Edges]  # returns the edges as the loop reads them

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each kind."""
        return tuple(kind.cell.num_neurons for kind in self.kinds)


def _plans(loop: Recurrence, x: Tensor, *learned: Tensor) -> list[RecurrentPlan] | None:
    """Return the plans of an input like ``x``, or ``None``; ``learned`` may need gradients too."""
    weight, kinds = loop.weight, loop.kinds
    given = [weight] if loop.bias is None else [weight, loop.bias]
    tensors = [tensor for kind in kinds for tensor in kind.tensors]
    if x.device.type != "cpu" or observed_by((x, loop.first, *given, *tensors)) is not None:
        return None
    shapes = [(*x.shape[1:-1], size) for size in loop.sizes]
    for kind, shape in zip(kinds, shapes, strict=True):
        if any(state.shape != shape or state.dtype != x.dtype for state in kind.active):
            return None
    plans = []
    needed = loop.first, weight.detach(), loop.bias, weight
    for kind in kinds:
        # what one learns comes back through the others
        plan = recurrent_plan_for(kind.cell, x, [*tensors, *learned], kind.kwargs, *needed)
        if plan is None or plan.backend != "cpu" or not plan.program.is_binary:
            return None
        plans.append(plan)
    first = loop.first.detach()
    if not bool(((first == 0) | (first == 1)).all()):
        return None
    # NaN comes back along edges, which the kernel skips where it is not let through
    if plans[0].has_backward and not weight.detach().sum().isfinite():
        return None
    return plans


def _run(
    loop: Recurrence,
    call: _Tensors | _Events,
    layout: Layout,
    plans: Sequence[RecurrentPlan],
    given: Tensor | None,
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return the results of a call, and the final states of each kind, as they are given."""
    rows = len(loop.first), layout.samples, -1
    tensors = [s.reshape(layout.samples, -1) for kind in loop.kinds for s in kind.active]
    for plan, kind in zip(plans, loop.kinds, strict=True):
        tensors += plan.program.tensors(kind.kwargs)
    node = _Node(tuple(plans), loop.edges(layout), layout, call)
    results = _Loop.apply(  # type: ignore[no-untyped-call]
        node, given, loop.first.reshape(rows), loop.weight, loop.bias, *tensors
    )
    found, ends = list(results[: call.results]), iter(results[call.results :])
    return found, [[_like(state, next(ends)) for state in kind.active] for kind in loop.kinds]


def _like(given: Tensor, result: Tensor) -> Tensor:
    return result if result.shape == given.shape else unsafe_view(result, given.shape)


def run_sparse_recurrence(
    loop: Recurrence, x: Tensor
) -> tuple[Tensor, Tensor, list[list[Tensor]]] | None:
    """Return outputs, last output and final states of each kind, or ``None``: step by step.

    ::

        output[t] = step(x[t] + bias + sum over edges of  weight[e] * output[t - 1 - delay[e]])

    The inputs ``x`` are ``[T, ..., neurons]``, at least one step, in the dtype of the arithmetic.
    """
    plans = _plans(loop, x)
    if plans is None:
        return None
    layout = Layout.beside(loop.sizes, x[0, ..., 0].numel())
    rows = x.reshape(len(x), layout.samples, -1)
    (output, last), ends = _run(loop, _Tensors(len(x)), layout, plans, rows)
    return _like(x, output), _like(x[0], last), ends


def _sequence(layout: Layout, values: Tensor | None, lanes: Tensor | None = None) -> Sequences:
    """Return what gives a part of a sequence ``[T, samples, neurons]``, by lane, in ``lanes``."""

    def part(begin: int, end: int) -> Part:
        if values is None:
            return Part()
        some, row = values[begin:end], (layout.groups, layout.lanes)
        if layout.is_plain:
            return Part(some)
        if not any(some.stride()):
            return Part(some[:, :1, :1].expand(-1, *row))
        here = large_empty((end - begin, *row), some.dtype) if lanes is None else lanes[begin:end]
        return Part(layout.enter(some, here))

    return part


class _Node(NamedTuple):
    """A node of the graph: all that is no tensor of it."""

    plans: tuple[RecurrentPlan, ...]
    edges: Edges
    layout: Layout
    call: _Tensors | _Events

    def loop(
        self, plans: Sequence[Plan], weight: Tensor, bias: Tensor | None, params: Sequence[Tensor]
    ) -> Loop:
        """Return the call of some plans."""
        edges, layout = self.edges, self.layout
        ordered = weight.detach()
        ordered = ordered if edges.order is None else ordered.index_select(0, edges.order)
        shift = ordered.new_zeros(sum(layout.sizes)) if bias is None else bias.detach()
        left, populations = iter(params), []
        for i, plan in enumerate(plans):
            values = [next(left).detach().contiguous() for _ in plan.program.params]
            populations.append(Population(plan, layout.of(i), values))
        sizes = populations, layout, edges, ordered.contiguous(), layout.by_lane(shift)
        return Loop(*sizes, self.call.steps)

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return states and parameters."""
        count = sum(len(plan.program.states) for plan in self.plans)
        return tensors[:count], tensors[count:]

    def given(self, grads: Grads) -> list[Plan]:
        """Return the plans of a backward pass, from the cotangents of the results."""
        *outputs, last = grads[: self.call.results]
        some = next((grad for grad in outputs if grad is not None), None)
        ends, found = iter(grads[self.call.results :]), []
        for plan in self.plans:
            each = [next(ends) for _ in plan.program.states]
            found.append((plan, (some, last, *each)))
        steps = self.call.steps
        parts = [plan.given(each, steps) for plan, each in found]
        if len(parts) == 1:
            return parts
        # what comes back to the input of one comes back to the outputs of all
        begins = [part.presence.get("g_output", ()) for part in parts]
        first = [each.index(True) for each in begins if any(each)]
        return [plan.given(each, steps, min(first, default=None)) for plan, each in found]


class _Loop(torch.autograd.Function):
    """The loop as one node of the graph, for all of time."""

    @staticmethod
    def forward(
        ctx: Any,
        node: _Node,
        given: Tensor | None,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states, params = node.split(tensors)
        loop = node.loop(node.plans, weight, bias, params)
        keep = node.plans[0].has_backward
        found, ends, kept = node.call.run(loop, given, (first.detach(), states), keep)
        results = [*found, *ends]
        ctx.node = node
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, weight, bias, *params, *noticed(*node.call.read))
        smooth = [any(plan.smooth_results[0] for plan in node.plans)] * len(found)
        for plan in node.plans:
            smooth += plan.smooth_results[2:]
        named = zip(results, smooth, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in named if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        node = ctx.node
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        bits, checkpoints, drive, weight, bias, *params = saved_tensors(ctx)
        plans = node.given(grads)
        loop = node.loop(plans, weight, bias, params)
        # nothing of the connection is reached where no input of a step is
        reached = any("x" in plan.reached for plan in plans)
        _, *needs = [need and reached for need in ctx.needs_input_grad[:5]]
        there = iter(incoming_gradients(weight, [g for g in grads if g is not None], 0))
        resolved = [None if g is None else next(there).resolve_neg() for g in grads]
        split = resolved[: node.call.results], resolved[node.call.results :]
        kept = Kept(bits, checkpoints, drive)
        of_given, found = node.call.back(loop, kept, split, Wanted(*needs))
        ends, of_states, of_params = iter(found.states), [], []
        for plan, named in zip(plans, found.params, strict=True):
            each = [(f"s_{name}" in plan.reached, next(ends)) for name in plan.program.states]
            of_states += [end if is_reached else None for is_reached, end in each]
            of_params += [named.get(name) for name in plan.program.params]
        return None, of_given, *found[:3], *of_states, *of_params


_Start: TypeAlias = tuple[Tensor, Sequence[Tensor]]  # first outputs and states
_Ran: TypeAlias = tuple[list[Tensor], list[Tensor], Kept]  # results, final states
_Grads: TypeAlias = tuple[list[Tensor | None], list[Tensor | None]]  # of these


@dataclass(frozen=True)
class _Tensors:
    """A call that takes and returns tensors of all steps."""

    steps: int
    results: ClassVar[int] = 2
    """The output, and the last one by itself."""
    read: ClassVar[Sequence[Tensor]] = ()
    """What the backward pass reads once more."""

    def run(self, loop: Loop, given: Tensor | None, start: _Start, keep: bool) -> _Ran:
        """Run forward."""
        layout = loop.layout
        output = large_empty((self.steps, layout.samples, sum(layout.sizes)), loop.dtype)
        # in the place of the input, so that no edge is visited again
        drive = large_empty((self.steps, *loop.row), loop.dtype) if keep else None

        def seen(begin: int, bits: Tensor) -> None:
            if not layout.is_plain:
                all_spikes_of(layout, bits, output[begin : begin + len(bits)])

        parts, dense = _sequence(layout, given, drive), output if layout.is_plain else None
        ends, kept = sparse_recurrence.forward(
            loop, parts, *start, output=dense, drive=drive, keep=keep, seen=seen
        )
        return [output, output[-1].clone()], ends, kept

    def back(
        self, loop: Loop, kept: Kept, grads: _Grads, wanted: Wanted
    ) -> tuple[Tensor | None, Gradients]:
        """Return the gradient of the input, and the others."""
        (output, last), ends = grads
        layout, d_x = loop.layout, None
        if wanted.given:
            d_x = large_empty((self.steps, layout.samples, sum(layout.sizes)), loop.dtype)

        def seen(begin: int, part: Tensor) -> None:
            if d_x is not None:
                layout.leave(part, d_x[begin : begin + len(part)])

        newest = None if last is None else layout.enter(last.unsqueeze(0))
        outgoing = _with_last(_sequence(layout, output), newest, self.steps)
        nothing = _sequence(layout, None)
        return d_x, sparse_recurrence.backward(loop, nothing, kept, (outgoing, ends), wanted, seen)


def _with_last(outputs: Sequences, last: Tensor | None, steps: int) -> Sequences:
    """Return what gives the gradient of outputs, and of the last ones ``[n, ...]`` once more."""

    def part(begin: int, end: int) -> Part:
        found = outputs(begin, end)
        start = steps - (0 if last is None else len(last))
        low = max(begin, start)
        if last is None or low >= end:
            return found
        if found.values is None:
            total = last.new_zeros(end - begin, *last.shape[1:])
        else:
            total = found.values.clone(memory_format=torch.contiguous_format)
        total[low - begin :] += last[low - start : end - start]
        return found._replace(values=total)

    return part


# By events


class Request(NamedTuple):
    """A run by events: its inputs and results, none with a value for every step and neuron."""

    steps: int
    samples: int
    given: Callable[[int, int], Rows]  # returns the input from outside between two steps, by neuron
    read: Sequence[Tensor]  # what that reads
    learned: Tensor
    """Step, sample and neuron of those events whose values have a gradient, ``[n, 3]``."""
    neurons: Tensor  # those whose outputs are wanted, ``[k]``
    bins: int  # steps of a bin in which spikes are counted; 0: nobody counts
    lists: bool  # whether the spikes are wanted as a list


class Found(NamedTuple):
    """Results of a run by events."""

    outputs: Tensor  # ``[T, samples, k]``
    counts: Tensor  # ``[bins, samples, neurons]``
    last: Tensor
    """The last outputs ``[n, samples, neurons]``, as many as there are and edges reach back to."""
    ends: list[list[Tensor]]  # final states of each kind
    events: Tensor  # ``[n, 3]``: step, sample, neuron


def run_sparse_events(loop: Recurrence, request: Request, values: Tensor | None) -> Found | None:
    """Run neurons in a loop from events, with ``values`` if they learn, to what is requested."""
    shape = (request.steps, request.samples, loop.first.shape[-1])
    # has a shape and no memory
    x = loop.first.new_zeros(()).expand(shape)
    plans = _plans(loop, x, *(() if values is None else (values,)))
    if plans is None:
        return None
    call = _Events(request, [])
    (outputs, counts, last), ends = _run(loop, call, Layout(loop.sizes, shape[1]), plans, values)
    return Found(outputs, counts, last, ends, *call.lists)


@dataclass(frozen=True)
class _Events:
    """A call whose input and output are not as long as all neurons; its rows are samples."""

    request: Request
    lists: list[Tensor]
    results: ClassVar[int] = 3
    """Outputs of some neurons, counts, and the last outputs of all."""

    @property
    def steps(self) -> int:
        return self.request.steps

    @property
    def read(self) -> Sequence[Tensor]:
        return self.request.read

    def _given(self, loop: Loop) -> Sequences:
        def part(begin: int, end: int) -> Part:
            rows = self.request.given(begin, end)
            return Part(rows=rows._replace(lanes=loop.layout.places[rows.lanes].int()))

        return part

    def run(self, loop: Loop, given: Tensor | None, start: _Start, keep: bool) -> _Ran:
        """Run forward."""
        found, parts = _Collected(loop, self.request), self._given(loop)
        ends, kept = sparse_recurrence.forward(loop, parts, *start, keep=keep, seen=found.add)
        self.lists.append(torch.cat(found.events))
        counts = loop.layout.leave(found.counts)
        return [torch.cat(found.outputs), counts, found.last], ends, kept

    def back(
        self, loop: Loop, kept: Kept, grads: _Grads, wanted: Wanted
    ) -> tuple[Tensor | None, Gradients]:
        """Return the gradient of the values, and the others."""
        (outputs, counts, last), ends = grads
        step, sample, neuron = self.request.learned.unbind(1)
        lanes = loop.layout.places[neuron]
        d_values = torch.zeros(len(step), dtype=loop.dtype)

        def seen(begin: int, part: Tensor) -> None:
            some = (step >= begin) & (step < begin + len(part))
            d_values[some] = part[step[some] - begin, sample[some], lanes[some]]

        newest = None if last is None else loop.layout.enter(last)
        outgoing = _with_last(_requested(loop, self.request, outputs, counts), newest, self.steps)
        parts = self._given(loop)
        found = sparse_recurrence.backward(loop, parts, kept, (outgoing, ends), wanted, seen)
        return d_values if wanted.given else None, found


class _Collected:
    """Results of a request, as far as steps have run."""

    def __init__(self, loop: Loop, request: Request) -> None:
        bins = -(-loop.steps // request.bins) if request.bins else 0
        self.loop, self.request = loop, request
        self.counts = torch.zeros(bins, *loop.row, dtype=loop.dtype)
        self.outputs: list[Tensor] = []
        self.events = [torch.zeros(0, 3, dtype=torch.int64)]
        self._wanted = loop.layout.places[request.neurons]
        self._neurons = torch.zeros(loop.layout.lanes, dtype=torch.int64)
        self._neurons[loop.layout.places] = torch.arange(len(loop.layout.places))
        self._bits = torch.zeros(0, loop.layout.groups, loop.layout.words, dtype=torch.int64)

    def add(self, begin: int, bits: Tensor) -> None:
        """Take the spikes of some steps from ``begin`` on."""
        loop, request, samples = self.loop, self.request, self.loop.layout.samples
        self.outputs.append(spikes_of(bits, self._wanted, loop.dtype))
        if request.bins or request.lists:
            for row, lane in events_of(bits):
                step, sample = begin + row // samples, row % samples
                if request.bins:
                    line = step // request.bins * samples + sample
                    one = self.counts.new_ones(()).expand(len(line))
                    self.counts.view(-1).index_add_(0, line * loop.layout.lanes + lane, one)
                if request.lists:
                    self.events.append(torch.stack([step, sample, self._neurons[lane]], 1))
        # a copy: the memory of the bits is used again
        self._bits = torch.cat([self._bits, bits[-loop.taps :]])[-loop.taps :]

    @property
    def last(self) -> Tensor:
        """The outputs of the last steps."""
        return spikes_of(self._bits, self.loop.layout.places, self.loop.dtype)


def _requested(
    loop: Loop, request: Request, of_outputs: Tensor | None, of_counts: Tensor | None
) -> Sequences:
    """Return what gives the gradient of the outputs, from those of what was returned of them."""
    lanes, order = loop.layout.places[request.neurons].sort()

    def part(begin: int, end: int) -> Part:
        steps = end - begin
        found = Part()
        if of_counts is not None:
            bins = torch.arange(begin, end) // request.bins
            if bins[0] == bins[-1]:  # one row for all steps
                values = loop.layout.enter(of_counts[int(bins[0])]).expand(steps, -1, -1)
            else:
                values = loop.layout.enter(of_counts[bins])
            found = Part(values)
        if of_outputs is not None:
            rows = steps * loop.layout.samples
            starts = torch.arange(rows + 1) * len(lanes)
            values = of_outputs[begin:end].index_select(-1, order).reshape(-1)
            found = found._replace(rows=Rows(starts, lanes.int().repeat(rows), values))
        return found

    return part
