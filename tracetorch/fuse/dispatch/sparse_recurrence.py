"""Run a layer's ``step`` over a whole sequence with its output fed back along a list of edges.

``snn.Recurrent`` with a plain ``snn.SparseLinear`` is one loop over time
(``tracetorch/fuse/codegen/sparse_loop.py``) where the neurons spike: their outputs are 0 or 1 by
the operation that makes them. What else there is runs step by step. Two calls share it: one takes
and returns tensors with a value for every step and neuron, and one neither, where these would not
fit into memory (:class:`Request`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.double_backward import saved_tensors
from tracetorch.core.torch_private import observed_by
from tracetorch.fuse.dispatch.operators import no_second_gradient
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.runtime import sparse_recurrence
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.sparse_recurrence import (
    Edges,
    Gradients,
    Kept,
    Loop,
    Part,
    Rows,
    Sequences,
    Wanted,
    events_of,
    spikes_of,
)


class Recurrence(NamedTuple):
    """Neurons in a loop along edges, before the first step."""

    cell: Cell
    first: Tensor
    """Outputs before the first step, as many as the largest delay and one, the oldest first."""
    weight: Tensor
    """Of each edge, in the order in which the layer has them."""
    bias: Tensor | None
    states: Sequence[Tensor | None]
    """Those before the first step, as ``step`` takes them."""
    kwargs: dict[str, Any]
    """The step kwargs."""
    edges: Callable[[], Edges]
    """Returns the edges as the loop reads them."""

    @property
    def active(self) -> list[Tensor]:
        """States that there are."""
        return [state for state in self.states if state is not None]


def _plan(loop: Recurrence, x: Tensor) -> RecurrentPlan | None:
    """Return the plan of a call, of an input like ``x``; ``None``: it runs step by step."""
    active, weight = loop.active, loop.weight
    tensors = [value for value in loop.kwargs.values() if isinstance(value, Tensor)]
    given = [weight] if loop.bias is None else [weight, loop.bias]
    seen = observed_by((x, loop.first, *given, *active, *tensors))
    if x.device.type != "cpu" or seen is not None:
        return None
    if any(state.shape != x.shape[1:] or state.dtype != x.dtype for state in active):
        return None
    needed = weight.detach(), loop.bias, weight
    plan = recurrent_plan_for(loop.cell, x, active, loop.kwargs, loop.first, *needed)
    if plan is None or plan.backend != "cpu" or not plan.program.is_binary:
        return None
    first = loop.first.detach()
    if not bool(((first == 0) | (first == 1)).all()):
        return None
    # NaN comes back along edges, which the kernel skips where it is not let through
    if plan.has_backward and not weight.detach().sum().isfinite():
        return None
    return plan


def run_sparse_recurrence(
    loop: Recurrence, x: Tensor
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, the last output and the final states.

    ::

        output[t] = step(x[t] + bias + sum over edges of  weight[e] * output[t - 1 - delay[e]])

    Args:
        loop: the neurons.
        x: the inputs ``[T, ..., neurons]``, at least one step, in the dtype of the arithmetic.

    Returns:
        ``None`` where it must run step by step.

    Raises:
        RuntimeError: the backend requested by name cannot run the layer.
    """
    plan = _plan(loop, x)
    if plan is None:
        return None
    params = [loop.kwargs[name] for name in plan.program.params]
    output, last, *ends = _Tensors.apply(  # type: ignore[no-untyped-call]
        plan, loop.edges(), x, loop.first, loop.weight, loop.bias, *loop.active, *params
    )
    return output, last, ends


def _sizes(
    plan: RecurrentPlan,
    edges: Edges,
    shape: Sequence[int],
    connection: tuple[Tensor, Tensor | None],
    params: Sequence[Tensor],
) -> Loop:
    """Return the call of a plan, for an input of a shape ``[T, ..., neurons]``."""
    neurons = shape[-1]
    samples = torch.Size(shape[1:]).numel() // neurons
    weight, bias = connection
    ordered = weight.detach()
    ordered = ordered if edges.order is None else ordered.index_select(0, edges.order)
    shift = ordered.new_zeros(neurons) if bias is None else bias.detach().contiguous()
    values = [param.detach().contiguous() for param in params]
    return Loop(plan, edges, ordered.contiguous(), shift, values, shape[0], samples, neurons)


def _given(sequence: Tensor | None) -> Sequences:
    """Return what gives a part of a sequence ``[T, ...]``, as ``[steps, samples, neurons]``."""

    def part(begin: int, end: int) -> Part:
        if sequence is None:
            return Part()
        return Part(sequence[begin:end].reshape(end - begin, -1, sequence.shape[-1]))

    return part


def _gradients(
    plan: RecurrentPlan, reached: frozenset[str], found: Gradients, shape: torch.Size
) -> tuple[Tensor | None, ...]:
    """Return the gradients of first outputs, weight, bias, states and parameters."""
    first = None if found.first is None else found.first.view(len(found.first), *shape)
    named = zip(plan.program.states, found.states, strict=True)
    return (
        first,
        found.weight,
        found.bias,
        *[grad.reshape(shape) if f"s_{name}" in reached else None for name, grad in named],
        *[
            found.params.get(name) if f"p_{name}" in reached else None
            for name in plan.program.params
        ],
    )


class _Tensors(torch.autograd.Function):
    """The loop as one node of the graph, for all of time; inputs and outputs are tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: RecurrentPlan,
        edges: Edges,
        x: Tensor,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        loop = _sizes(plan, edges, x.shape, (weight, bias), params)
        output = large_empty(x.shape, x.dtype)
        ends, kept = sparse_recurrence.forward(
            loop, _given(x), first.detach(), states, output=output, keep=plan.has_backward
        )
        results = [output, output[-1].clone(), *(end.reshape(x.shape[1:]) for end in ends.clone())]
        ctx.plan, ctx.edges = plan, edges
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *kept, weight, bias, *params)
        smooth = zip(results, plan.smooth_results, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in smooth if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, edges = ctx.plan, ctx.edges
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        x, bits, checkpoints, weight, bias, *params = saved_tensors(ctx)
        loop = _sizes(plan, edges, x.shape, (weight, bias), params)
        # nothing of the connection is reached where no input of a step is
        reached = plan.given(grads, len(x)).reached
        _, _, *needs = ctx.needs_input_grad
        wanted = Wanted(*(need and "x" in reached for need in needs[:4]))
        of_output, of_last, *of_ends = [g if g is None else g.resolve_neg() for g in grads]
        newest = None if of_last is None else of_last.unsqueeze(0)
        back = (_outgoing(of_output, newest, len(x)), of_ends)
        kept = Kept(bits, checkpoints)
        found = sparse_recurrence.backward(loop, _given(x), kept, back, wanted)
        of_x = None if found.x is None else found.x.view(x.shape)
        return None, None, of_x, *_gradients(plan, reached, found, x.shape[1:])


def _outgoing(output: Tensor | None, last: Tensor | None, steps: int) -> Sequences:
    """Return what gives the gradient of outputs, and of the last ones ``[n, ...]`` once more."""
    outputs = _given(output)

    def part(begin: int, end: int) -> Part:
        found = outputs(begin, end)
        return found if last is None else _with_last(found, last, (begin, end, steps))

    return part


def _with_last(found: Part, last: Tensor, bounds: tuple[int, int, int]) -> Part:
    """Add the gradient of the last of all steps to that of some."""
    begin, end, steps = bounds
    start = steps - len(last)
    low = max(begin, start)
    if low >= end:
        return found
    more = last.reshape(len(last), -1, last.shape[-1])
    if found.values is None:
        total = more.new_zeros(end - begin, *more.shape[1:])
    else:
        total = found.values.clone(memory_format=torch.contiguous_format)
    total[low - begin :] += more[low - start : end - start]
    return found._replace(values=total)


# By events


class Request(NamedTuple):
    """A run by events: its inputs and results, none with a value for every step and neuron."""

    steps: int
    samples: int
    given: Sequences
    """Input from outside."""
    neurons: Tensor
    """Those whose outputs are wanted, ``[k]``."""
    bins: int
    """Steps of a bin in which spikes are counted; 0: nobody counts."""
    lists: bool
    """Whether the spikes are wanted as a list."""


class Found(NamedTuple):
    """Results of a run by events."""

    outputs: Tensor
    """``[T, samples, k]``."""
    counts: Tensor
    """``[bins, samples, neurons]``."""
    last: Tensor
    """The last outputs ``[n, samples, neurons]``, as many as there are and edges reach back to."""
    ends: Sequence[Tensor]
    """Final states."""
    events: Tensor
    """``[n, 3]``: step, sample, neuron."""


def run_sparse_events(loop: Recurrence, request: Request) -> Found | None:
    """Run neurons in a loop along edges, from events to what a request names.

    Returns:
        ``None`` where there is no loop that computes as the modules would.

    Raises:
        RuntimeError: the backend requested by name cannot run the layer.
    """
    shape = (request.steps, request.samples, loop.first.shape[-1])
    # has a shape and no memory
    x = loop.first.new_zeros(()).expand(shape)
    plan = _plan(loop, x)
    if plan is None:
        return None
    params = [loop.kwargs[name] for name in plan.program.params]
    lists: list[Tensor] = []
    outputs, counts, last, *ends = _Events.apply(  # type: ignore[no-untyped-call]
        plan,
        loop.edges(),
        request,
        lists,
        *(loop.first, loop.weight, loop.bias, *loop.active, *params),
    )
    return Found(outputs, counts, last, ends, *lists)


class _Events(torch.autograd.Function):
    """The loop as one node of the graph; neither input nor output is as long as all neurons."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: RecurrentPlan,
        edges: Edges,
        request: Request,
        lists: list[Tensor],
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        shape = (request.steps, request.samples, first.shape[-1])
        loop = _sizes(plan, edges, shape, (weight, bias), params)
        found = _Collected(loop, request)
        ends, kept = sparse_recurrence.forward(
            loop,
            request.given,
            first.detach(),
            states,
            output=None,
            keep=plan.has_backward,
            seen=found.add,
        )
        lists.append(torch.cat(found.events))
        results = [torch.cat(found.outputs), found.counts, found.last, *ends.clone()]
        ctx.plan, ctx.edges, ctx.request = plan, edges, request
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, weight, bias, *params)
        smooth = (*plan.smooth_results[:1] * 3, *plan.smooth_results[2:])
        named = zip(results, smooth, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in named if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, edges, request = ctx.plan, ctx.edges, ctx.request
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        bits, checkpoints, weight, bias, *params = saved_tensors(ctx)
        size = len(bias) if bias is not None else (len(edges.starts) - 1) // edges.chunks
        shape = torch.Size((request.steps, request.samples, size))
        loop = _sizes(plan, edges, shape, (weight, bias), params)
        outputs, counts, last, *ends = [g if g is None else g.resolve_neg() for g in grads]
        some = next((g for g in (outputs, counts, last) if g is not None), None)
        reached = plan.given((some, some, *ends), request.steps).reached
        _, _, _, _, *needs = ctx.needs_input_grad
        wanted = Wanted(False, *(need and "x" in reached for need in needs[:3]))
        back = (_requested(loop, request, (outputs, counts, last)), ends)
        kept = Kept(bits, checkpoints)
        found = sparse_recurrence.backward(loop, request.given, kept, back, wanted)
        return None, None, None, None, *_gradients(plan, reached, found, shape[1:])


class _Collected:
    """Results of a request, as far as steps have run."""

    def __init__(self, loop: Loop, request: Request) -> None:
        bins = -(-loop.steps // request.bins) if request.bins else 0
        self.loop, self.request = loop, request
        self.counts = torch.zeros(bins, loop.samples, loop.neurons, dtype=loop.dtype)
        self.outputs: list[Tensor] = []
        self.events = [torch.zeros(0, 3, dtype=torch.int64)]
        self._bits = torch.zeros(0, loop.samples, loop.words, dtype=torch.int64)

    def add(self, begin: int, bits: Tensor) -> None:
        """Take the spikes of some steps from ``begin`` on."""
        loop, request = self.loop, self.request
        self.outputs.append(spikes_of(bits, request.neurons, loop.dtype))
        if request.bins or request.lists:
            for row, neuron in events_of(bits):
                step, sample = begin + row // loop.samples, row % loop.samples
                if request.bins:
                    place = (step // request.bins) * loop.lanes + sample * loop.neurons + neuron
                    one = self.counts.new_ones(()).expand(len(place))
                    self.counts.view(-1).index_add_(0, place, one)
                if request.lists:
                    self.events.append(torch.stack([step, sample, neuron], 1))
        # a copy: the memory of the bits is used again
        self._bits = torch.cat([self._bits, bits[-loop.taps :]])[-loop.taps :]

    @property
    def last(self) -> Tensor:
        """The outputs of the last steps."""
        return spikes_of(self._bits, torch.arange(self.loop.neurons), self.loop.dtype)


def _requested(
    loop: Loop, request: Request, grads: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> Sequences:
    """Return what gives the gradient of the outputs, from those of what was returned of them."""
    of_outputs, of_counts, of_last = grads
    neurons, order = request.neurons.sort()

    def part(begin: int, end: int) -> Part:
        steps = end - begin
        found = Part()
        if of_counts is not None:
            bins = torch.arange(begin, end) // request.bins
            if bins[0] == bins[-1]:  # one row for all steps
                values = of_counts[int(bins[0])].expand(steps, -1, -1)
            else:
                values = of_counts[bins]
            found = Part(values)
        if of_outputs is not None:
            rows = steps * loop.samples
            starts = torch.arange(rows + 1) * len(neurons)
            every = neurons.int().repeat(rows)
            values = of_outputs[begin:end].index_select(-1, order).reshape(-1)
            found = found._replace(rows=Rows(starts, every, values))
        return found if of_last is None else _with_last(found, of_last, (begin, end, loop.steps))

    return part
