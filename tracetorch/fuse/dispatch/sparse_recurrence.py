"""Run a layer's ``step`` over a whole sequence with its output fed back along a list of edges.

One loop over time where outputs are 0 or 1 by the operation that makes them; step by step
elsewhere. Two calls share it: one takes and returns tensors, the other one events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.torch_private import noticed, observed_by, saved_tensors, unsafe_view
from tracetorch.fuse.codegen.sparse_loop import BITS, TILE
from tracetorch.fuse.dispatch.operators import incoming_gradients, no_second_gradient
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.ir.plan import Plan, RecurrentPlan
from tracetorch.fuse.runtime import sparse_segments
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.sparse_segments import (
    Kept,
    Part,
    Rows,
    Sequences,
    SparseLoop,
    chunks_of,
    events_of,
    spikes_of,
)


class RecurrentCall(NamedTuple):
    """Neurons in a loop along edges, before the first step."""

    cell: Cell
    states: Sequence[Tensor | None]  # those before the first step, as ``step`` takes them
    kwargs: dict[str, Any]  # the step kwargs
    first: Tensor
    """Outputs before the first step, as many as the largest delay and one, the oldest first."""
    weight: Tensor  # of each edge, in the order in which the layer has them
    bias: Tensor | None
    linear: Any  # the layer of both, whose ``plan`` has the edges as the loop reads them

    @property
    def active(self) -> list[Tensor]:
        """States that there are."""
        return [state for state in self.states if state is not None]


def _plan(loop: RecurrentCall, x: Tensor, *learned: Tensor) -> RecurrentPlan | None:
    """Return the plan of an input like ``x``, or ``None``; ``learned`` may need gradients too."""
    weight, bias, first = loop.weight, loop.bias, loop.first
    values = [value for value in loop.kwargs.values() if isinstance(value, Tensor)]
    tensors = [x, first, weight, *([] if bias is None else [bias]), *loop.active, *values]
    if x.device.type != "cpu" or observed_by(tensors) is not None:
        return None
    if any(state.shape != x.shape[1:] or state.dtype != x.dtype for state in loop.active):
        return None
    # no matrix has a gradient, and so the kernels compute none
    states = [*loop.active, weight, *learned]
    plan = recurrent_plan_for(loop.cell, x, states, loop.kwargs, first, weight.detach(), bias)
    if plan is None or plan.backend != "cpu" or not plan.program.is_binary:
        return None
    if not bool(((first.detach() == 0) | (first.detach() == 1)).all()):
        return None
    # NaN comes back along edges, which the kernel skips where it is not let through
    is_finite = not plan.has_backward or weight.detach().sum().isfinite()
    return plan if is_finite else None


def _run(
    loop: RecurrentCall,
    plan: RecurrentPlan,
    x: Tensor,
    given: Tensor | None,
    request: EventRequest | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the results of an input like ``x``, and the final states, as they are given."""
    shape = x[0, ..., 0].numel(), x.shape[-1]
    none = loop.weight.new_empty(0)  # of a node, which saves its tensors by itself
    edges = loop.linear.plan.by_chunk(chunks_of(*shape))
    call = SparseLoop(plan, (), shape, edges, none, none, len(x))
    count = 2 if request is None else 4
    states = [state.reshape(shape) for state in loop.active]
    results = _SparseRecurrence.apply(  # type: ignore[no-untyped-call]
        *(call, request, given, loop.first.reshape(-1, *shape), loop.weight, loop.bias),
        *(*states, *plan.program.tensors(loop.kwargs)),
    )
    ends = zip(loop.active, results[count:], strict=True)
    return list(results[:count]), [_like(state, end) for state, end in ends]


def _like(given: Tensor, result: Tensor) -> Tensor:
    return result if result.shape == given.shape else unsafe_view(result, given.shape)


def run_sparse_recurrence(
    loop: RecurrentCall, x: Tensor
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, last output and final states of inputs ``[T, ..., neurons]``, or ``None``."""
    plan = _plan(loop, x)
    if plan is None:
        return None
    (output, last), ends = _run(loop, plan, x, x.reshape(len(x), -1, x.shape[-1]))
    return _like(x, output), _like(x[0], last), ends


def _with_tensors(
    loop: SparseLoop, plan: Plan, weight: Tensor, bias: Tensor | None, params: Sequence[Tensor]
) -> SparseLoop:
    """Return the loop of a plan, with weights in the order of its edges."""
    order, neurons = loop.edges.order, loop.shape[1]
    ordered = weight.detach()
    ordered = (ordered if order is None else ordered.index_select(0, order)).contiguous()
    shift = ordered.new_zeros(-(-neurons // BITS) * BITS)
    if bias is not None:
        shift[:neurons] = bias.detach()
    values = [param.detach().contiguous() for param in params]
    return replace(loop, plan=plan, params=values, weight=ordered, bias=shift)


class _SparseRecurrence(torch.autograd.Function):
    """The loop as one node of the graph, for all of time."""

    @staticmethod
    def forward(
        ctx: Any,
        loop: SparseLoop,
        request: EventRequest | None,
        given: Tensor | None,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.loop, ctx.request, plan = loop, request, loop.plan
        count = len(plan.program.states)
        loop = _with_tensors(loop, plan, weight, bias, tensors[count:])
        start, keep = (first.detach(), tensors[:count]), plan.has_backward
        if request is None:
            output = large_empty((loop.steps, *loop.shape), loop.dtype)
            # in the place of the input, so that no edge is visited again
            drive = large_empty(output.shape, loop.dtype) if keep else None
            ends, kept = sparse_segments.forward(
                loop, _sequence(given), *start, output=output, drive=drive, keep=keep
            )
            found = [output, output[-1:].clone()]
        else:
            found, ends, kept = _run_events(loop, request, start, keep)
        read = () if request is None else request.read
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, weight, bias, *tensors[count:], *noticed(*read))
        smooth = [plan.smooth_results[0]] * len(found) + [*plan.smooth_results[2:]]
        named = zip([*found, *ends], smooth, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in named if not has_gradient))
        return (*found, *ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        loop, request, results = ctx.loop, ctx.request, 2 if ctx.request is None else 4
        bits, checkpoints, drive, weight, bias, *tensors = saved_tensors(ctx)
        *outputs, last = grads[:results]
        some = next((grad for grad in outputs if grad is not None), None)
        plan = loop.plan.given((some, last, *grads[results:]), loop.steps)
        loop = _with_tensors(loop, plan, weight, bias, tensors[: len(plan.program.params)])
        # nothing of the connection is reached where no input of a step is
        wanted = [need and "x" in plan.reached for need in ctx.needs_input_grad[2:6]]
        there = iter(incoming_gradients(weight, [g for g in grads if g is not None], 0))
        resolved = [None if g is None else next(there).resolve_neg() for g in grads]
        (*given, last), ends = resolved[:results], resolved[results:]
        if request is None:
            d_given = large_empty((loop.steps, *loop.shape), loop.dtype) if wanted[0] else None
            inputs, outgoing = _sequence(None), _sequence(given[0])
        else:
            d_given = torch.zeros(len(request.learned), dtype=loop.dtype) if wanted[0] else None
            inputs = _given(request)
            outgoing = _requested(request, given[0], given[1], loop.shape)

        def seen(begin: int, part: Tensor) -> None:
            if d_given is not None and request is None:
                d_given[begin : begin + len(part)] = part
            elif d_given is not None:
                step, sample, neuron = request.learned.unbind(1)
                some = (step >= begin) & (step < begin + len(part))
                d_given[some] = part[step[some] - begin, sample[some], neuron[some]]

        outgoing, kept = _with_last(outgoing, last, loop.steps), Kept(bits, checkpoints, drive)
        found = sparse_segments.backward(loop, inputs, kept, outgoing, ends, wanted, seen)
        named = zip(plan.program.states, found[3], strict=True)
        of_states = [end if f"s_{name}" in plan.reached else None for name, end in named]
        of_params = map(found[4].get, plan.program.params)
        return None, None, d_given, *found[:3], *of_states, *of_params


# Sequences


def _sequence(values: Tensor | None) -> Sequences:
    """Return what gives a part of a sequence ``[T, samples, neurons]``."""
    return lambda begin, end: Part(None if values is None else values[begin:end])


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


class EventRequest(NamedTuple):
    """A run by events: its inputs and results, none with a value for every step and neuron."""

    steps: int
    samples: int
    given: Callable[[int, int], Rows]  # returns the input from outside between two steps
    read: Sequence[Tensor]  # what that reads
    learned: Tensor
    """Step, sample and neuron of those events whose values have a gradient, ``[n, 3]``."""
    neurons: Tensor  # those whose outputs are wanted, ``[k]``
    bins: int  # steps of a bin in which spikes are counted; 0: nobody counts
    lists: bool  # whether the spikes are wanted as a list


def run_sparse_events(
    loop: RecurrentCall, request: EventRequest, values: Tensor | None
) -> tuple[list[Tensor], Tensor, list[Tensor]] | None:
    """Return outputs, counts and events; as many last outputs as edges reach back; and states."""
    # has a shape and no memory
    x = loop.first.new_zeros(()).expand(request.steps, request.samples, loop.first.shape[-1])
    plan = _plan(loop, x, *(() if values is None else (values,)))
    if plan is None:
        return None
    (*found, last), ends = _run(loop, plan, x, values, request)
    return found, last, ends


def _run_events(
    loop: SparseLoop, request: EventRequest, start: tuple[Tensor, Sequence[Tensor]], keep: bool
) -> tuple[list[Tensor], list[Tensor], Kept]:
    (samples, neurons), bins = loop.shape, request.bins
    counts = torch.zeros(-(-loop.steps // bins) if bins else 0, *loop.shape, dtype=loop.dtype)
    outputs, events = [], [torch.zeros(0, 3, dtype=torch.int64)]
    recent = torch.zeros(0, samples, loop.words, dtype=torch.int64)

    def seen(begin: int, bits: Tensor) -> None:
        nonlocal recent
        outputs.append(spikes_of(bits, request.neurons, loop.dtype))
        for row, neuron in events_of(bits) if bins or request.lists else ():
            step, sample = begin + row // samples, row % samples
            if bins:
                place = (step // bins * samples + sample) * neurons + neuron
                one = counts.new_ones(()).expand(len(place))
                counts.view(-1).index_add_(0, place, one)
            if request.lists:
                events.append(torch.stack([step, sample, neuron], 1))
        # a copy: the memory of the bits is used again
        recent = torch.cat([recent, bits[-loop.taps :]])[-loop.taps :]

    ends, kept = sparse_segments.forward(loop, _given(request), *start, keep=keep, seen=seen)
    last = spikes_of(recent, torch.arange(neurons), loop.dtype)
    return [torch.cat(outputs), counts, torch.cat(events), last], ends, kept


def _given(request: EventRequest) -> Sequences:
    return lambda begin, end: Part(rows=request.given(begin, end))


def _requested(
    request: EventRequest,
    of_outputs: Tensor | None,
    of_counts: Tensor | None,
    shape: tuple[int, int],
) -> Sequences:
    """Return what gives the gradient of the outputs, from those of what was returned of them."""
    neurons, order = request.neurons.sort()
    in_tiles = torch.bincount(neurons // TILE, minlength=-(-shape[1] // TILE))

    def part(begin: int, end: int) -> Part:
        rows, values = None, None
        if of_counts is not None:
            bins = torch.arange(begin, end) // request.bins
            if bins[0] == bins[-1]:  # one row for all steps
                values = of_counts[int(bins[0])].expand(end - begin, -1, -1)
            else:
                values = of_counts[bins]
        if of_outputs is not None:
            count = (end - begin) * shape[0]
            starts = torch.cat([in_tiles.new_zeros(1), in_tiles.repeat(count).cumsum(0)])
            given = of_outputs[begin:end].index_select(-1, order).reshape(-1)
            rows = Rows(starts, neurons.int().repeat(count), given)
        return Part(values, rows)

    return part
