"""Run a layer's ``step`` over a whole sequence with its output fed back along a list of edges.

One loop over time where outputs are 0 or 1 by the operation that makes them; step by step
elsewhere. Two calls share it: one takes and returns tensors, the other one events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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
    Edges,
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
) -> tuple[list[Any], list[Tensor]]:
    """Return the results of an input like ``x``, and the final states, as they are given."""
    shape = x[0, ..., 0].numel(), x.shape[-1]
    sizes = shape, loop.linear.plan.by_chunk(chunks_of(*shape)), len(x)
    states = [state.reshape(shape) for state in loop.active]
    results = _SparseRecurrence.apply(  # type: ignore[no-untyped-call]
        *(plan, sizes, request, given, loop.first.reshape(-1, *shape), loop.weight, loop.bias),
        *(*states, *plan.program.tensors(loop.kwargs)),
    )
    ends = zip(loop.active, results[4:], strict=True)
    return list(results[:4]), [_like(state, end) for state, end in ends]


def _like(given: Tensor, result: Tensor) -> Tensor:
    return result if result.shape == given.shape else unsafe_view(result, given.shape)


def run_sparse_recurrence(
    loop: RecurrentCall, x: Tensor
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, last output and final states of inputs ``[T, ..., neurons]``, or ``None``."""
    plan = _plan(loop, x)
    if plan is None:
        return None
    (output, _, _, last), ends = _run(loop, plan, x, x.reshape(len(x), -1, x.shape[-1]))
    return _like(x, output), _like(x[0], last), ends


_Sizes: TypeAlias = tuple[tuple[int, int], Edges, int]
"""Samples and neurons, edges, and steps."""


def _loop_of(
    plan: Plan, sizes: _Sizes, weight: Tensor, bias: Tensor | None, params: Sequence[Tensor]
) -> SparseLoop:
    """Return the loop of a plan, with weights in the order of its edges."""
    (_, neurons), order = sizes[0], sizes[1].order
    ordered = weight.detach()
    ordered = (ordered if order is None else ordered.index_select(0, order)).contiguous()
    shift = ordered.new_zeros(-(-neurons // BITS) * BITS)
    if bias is not None:
        shift[:neurons] = bias.detach()
    values = [param.detach().contiguous() for param in params]
    return SparseLoop(plan, *sizes, params=values, weight=ordered, bias=shift)


class _SparseRecurrence(torch.autograd.Function):
    """The loop as one node of the graph, for all of time."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: RecurrentPlan,
        sizes: _Sizes,
        request: EventRequest | None,
        given: Tensor | None,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.call = plan, sizes, request
        count = len(plan.program.states)
        loop = _loop_of(plan, sizes, weight, bias, tensors[count:])
        start, keep = (first.detach(), tensors[:count]), plan.has_backward
        found: Sequence[Tensor | None]
        if request is None:
            output = large_empty((loop.steps, *loop.shape), loop.dtype)
            # in the place of the input, so that no edge is visited again
            drive = large_empty(output.shape, loop.dtype) if keep else None
            ends, _, kept = sparse_segments.forward(
                loop, _given(None, given), *start, output=output, drive=drive, keep=keep
            )
            found = output, None, None, output[-1:].clone()
        else:
            found, ends, kept = _run_events(loop, request, start, keep)
        read = () if request is None else request.read
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, weight, bias, *tensors[count:], *noticed(*read))
        results = (*found, *ends)
        smooth = [plan.smooth_results[0]] * 4 + [*plan.smooth_results[2:]]
        rough = [end for end, is_smooth in zip(results, smooth, strict=True) if not is_smooth]
        ctx.mark_non_differentiable(*(end for end in rough if end is not None))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        plan, sizes, request = ctx.call
        bits, checkpoints, drive, weight, bias, *tensors = saved_tensors(ctx)
        known = [None if g is None else incoming_gradients(weight, [g], 0)[0] for g in grads]
        of_outputs, of_counts, _, last, *ends = known
        some = of_counts if of_outputs is None else of_outputs
        plan = plan.given((some, last, *ends), sizes[2])
        loop = _loop_of(plan, sizes, weight, bias, tensors[: len(plan.program.params)])
        # nothing of the connection is reached where no input of a step is
        wanted = [need and "x" in plan.reached for need in ctx.needs_input_grad[3:7]]
        d_given = None
        if wanted[0] and request is None:
            d_given = large_empty((loop.steps, *loop.shape), loop.dtype)
        elif wanted[0]:
            d_given = torch.zeros(len(request.learned), dtype=loop.dtype)

        def seen(begin: int, part: Tensor) -> None:
            if d_given is not None and request is None:
                d_given[begin : begin + len(part)] = part
            elif d_given is not None:
                step, sample, neuron = request.learned.unbind(1)
                some = (step >= begin) & (step < begin + len(part))
                d_given[some] = part[step[some] - begin, sample[some], neuron[some]]

        outgoing = _outgoing(loop, request, of_outputs, of_counts, last)
        kept = Kept(bits, checkpoints, drive)
        inputs = _given(request, None)
        found = sparse_segments.backward(loop, inputs, kept, outgoing, ends, wanted, seen)
        named = zip(plan.program.states, found[3], strict=True)
        of_states = [end if f"s_{name}" in plan.reached else None for name, end in named]
        of_params = map(found[4].get, plan.program.params)
        return None, None, None, d_given, *found[:3], *of_states, *of_params


# Sequences


def _given(request: EventRequest | None, values: Tensor | None) -> Sequences:
    """Return what gives a part of the input from outside."""
    if request is not None:
        return lambda begin, end: Part(rows=request.given(begin, end))
    return lambda begin, end: Part(None if values is None else values[begin:end])


def _outgoing(
    loop: SparseLoop,
    request: EventRequest | None,
    of_outputs: Tensor | None,
    of_counts: Tensor | None,
    last: Tensor | None,
) -> Sequences:
    """Return what gives the gradient of all outputs, from those of what was returned of them."""
    start = loop.steps - (0 if last is None else len(last))

    def part(begin: int, end: int) -> Part:
        rows, values = None, None
        if request is None:
            values = None if of_outputs is None else of_outputs[begin:end]
        elif of_outputs is not None:
            neurons, order = request.neurons.sort()
            in_tiles = torch.bincount(neurons // TILE, minlength=-(-loop.shape[1] // TILE))
            count = (end - begin) * loop.shape[0]
            starts = torch.cat([in_tiles.new_zeros(1), in_tiles.repeat(count).cumsum(0)])
            given = of_outputs[begin:end].index_select(-1, order).reshape(-1)
            rows = Rows(starts, neurons.int().repeat(count), given)
        if of_counts is not None and request is not None:
            bins = torch.arange(begin, end) // request.bins
            is_one = bins[0] == bins[-1]  # a row for all steps
            values = of_counts[bins[:1]].expand(end - begin, -1, -1) if is_one else of_counts[bins]
        if last is not None and end > start:
            low, others = max(begin, start), 0 if values is None else values
            values = last.new_zeros(end - begin, *loop.shape) + others
            values[low - begin :] += last[low - start : end - start]
        return Part(values, rows)

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

    def seen(begin: int, bits: Tensor) -> None:
        outputs.append(spikes_of(bits, request.neurons, loop.dtype))
        for row, neuron in events_of(bits) if bins or request.lists else ():
            step, sample = begin + row // samples, row % samples
            if bins:
                place = (step // bins * samples + sample) * neurons + neuron
                one = counts.new_ones(()).expand(len(place))
                counts.view(-1).index_add_(0, place, one)
            if request.lists:
                events.append(torch.stack([step, sample, neuron], 1))

    ends, recent, kept = sparse_segments.forward(
        loop, _given(request, None), *start, keep=keep, seen=seen
    )
    last = spikes_of(recent, torch.arange(neurons), loop.dtype)
    return [torch.cat(outputs), counts, torch.cat(events), last], ends, kept
