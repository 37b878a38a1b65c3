"""Run a layer's ``step`` over a whole sequence with its output fed back through a matrix.

Recurrence. ``snn.Recurrent`` with an exact ``nn.Linear`` or ``snn.DelayedLinear`` is one loop over
time too (``tracetorch/fuse/ir/schedule.py``). Neurons of a sample are coupled, samples are not:
a task is eight samples. The output of each step is multiplied by one matrix for each delay, with
its events, or densely where more than 0.4 of four rows are not zero; backward does the same with
the cotangents. What is kept for backward is the sum that the step was given, in place of the input:
states and outputs are computed again from it, step by step without a product, and the weight's
gradient is one product over all of time for each matrix. Hooks, overrides, parametrizations,
autocast, half precision, transforms, ``torch.compile``, a record of the neuron inside, or a weight
that is not finite (a skipped ``0 * inf`` would hide the NaN): then the modules are called step by
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.double_backward import saved_tensors
from tracetorch.core.torch_private import observed_by
from tracetorch.fuse.dispatch.operators import incoming_gradients, no_second_gradient
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.runtime import recurrence, sparse_recurrence
from tracetorch.fuse.runtime.sparse_recurrence import Edges, Kept, Loop, Sequences, Wanted


def run_recurrence(
    cell: Cell,
    x: Tensor,
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, the last output and the final states of a neuron in a loop with matrices.

    ::

        output[t] = step(x[t] + bias + sum_j  weight[..., j] @ output[t - taps + j])

    Args:
        cell: whose ``step``, its neurons in the last dimension.
        x: the inputs ``[T, ...]``, at least one step, in the dtype of the arithmetic.
        first: the outputs before the first step ``[taps, ...]``, the oldest first.
        weight: ``[N, N, taps]``, or ``[N, N]`` for one.
        bias: ``[N]``.
        states: the states before the first step, as ``step`` takes them.
        kwargs: the step kwargs.

    Returns:
        ``None`` where it must run step by step.

    Raises:
        RuntimeError: the backend requested by name cannot run the layer.
    """
    active = [state for state in states if state is not None]
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    connection = [weight] if bias is None else [weight, bias]
    if observed_by((x, first, *connection, *active, *tensors)) is not None:
        return None
    plan = recurrent_plan_for(cell, x, active, kwargs, first, weight, bias)
    # a product by events skips zeros, which an infinite weight would make NaN
    if plan is None or not weight.detach().sum().isfinite():
        return None
    params = [kwargs[name] for name in plan.program.params]
    if plan.has_backward:
        output, last, *ends = _Recurrence.apply(  # type: ignore[no-untyped-call]
            plan, x, first, weight, bias, *active, *params
        )
    else:
        results, _ = recurrence.forward(plan, x, first, weight, bias, active, params)
        output, last, *ends = results
    return output, last, ends


class _Recurrence(torch.autograd.Function):
    """The loop as one node of the graph, for all of time."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: RecurrentPlan,
        x: Tensor,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        results, kept = recurrence.forward(plan, x, first, weight, bias, states, params)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, first, weight, *tensors)
        smooth = zip(results, plan.smooth_results, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in smooth if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        x, checkpoints, first, weight, *tensors = saved_tensors(ctx)
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        plan = plan.given(grads, len(x))
        resolved = [grad if grad is None else grad.resolve_neg() for grad in grads]
        incoming = incoming_gradients(x, resolved, 1 + count)
        d_x, d_first, d_weight, d_states, d_params = recurrence.backward(
            plan, x, checkpoints, first, weight, states, params, incoming
        )
        _, wants_x, wants_first, _, wants_bias, *_ = ctx.needs_input_grad
        # nothing of the connection is reached where no input of a step is
        reached = "x" in plan.reached
        named = zip(plan.program.states, d_states, strict=True)
        return (
            None,
            d_x if wants_x and reached else None,
            d_first if wants_first and reached else None,
            d_weight if reached else None,
            d_x.reshape(-1, x.shape[-1]).sum(0) if wants_bias and reached else None,
            *[grad if f"s_{name}" in plan.reached else None for name, grad in named],
            *map(d_params.get, plan.program.params),
        )


# Along edges


def run_sparse_recurrence(
    cell: Cell,
    x: Tensor,
    first: Tensor,
    connection: tuple[Tensor, Tensor | None],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    edges: Callable[[], Edges],
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return what :func:`run_recurrence` does, of a loop along a list of edges.

    Args:
        cell, x, states, kwargs: as there.
        first: the outputs before the first step, as many as the largest delay and one, the oldest
            first.
        connection: the weight of each edge, in the order in which the layer has them, and the bias.
        edges: returns those that a sample's chunks read.

    Returns:
        ``None`` where it must run step by step.

    Raises:
        RuntimeError: the backend requested by name cannot run the layer.
    """
    active = [state for state in states if state is not None]
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    weight, bias = connection
    given = [weight] if bias is None else [weight, bias]
    if x.device.type != "cpu" or observed_by((x, first, *given, *active, *tensors)) is not None:
        return None
    if any(s.shape != x.shape[1:] or s.dtype != x.dtype for s in active):
        return None
    plan = recurrent_plan_for(cell, x, active, kwargs, first, weight.detach(), bias, weight)
    if plan is None or not plan.program.is_binary or not _are_spikes(first):
        return None
    # back along edges comes what is not finite too, where the kernel skips what is not let through
    if plan.has_backward and not weight.detach().sum().isfinite():
        return None
    params = [kwargs[name] for name in plan.program.params]
    results = _SparseRecurrence.apply(  # type: ignore[no-untyped-call]
        plan, edges(), x, first, weight, bias, *active, *params
    )
    output, last, *ends = results
    return output, last, ends


def _are_spikes(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _loop(
    plan: RecurrentPlan,
    edges: Edges,
    shape: torch.Size,
    weight: Tensor,
    bias: Tensor | None,
    params: Sequence[Tensor],
) -> Loop:
    neurons = shape[-1]
    samples = shape[1:].numel() // neurons
    ordered = weight.detach()
    ordered = ordered if edges.order is None else ordered.index_select(0, edges.order)
    shift = ordered.new_zeros(neurons) if bias is None else bias.detach().contiguous()
    values = [param.detach().contiguous() for param in params]
    return Loop(plan, edges, ordered.contiguous(), shift, values, shape[0], samples, neurons)


def _given(sequence: Tensor | None) -> Sequences:
    """Return what gives a part of a sequence ``[T, ...]``, as ``[steps, samples, neurons]``."""

    def part(begin: int, end: int) -> Tensor | None:
        if sequence is None:
            return None
        return sequence[begin:end].reshape(end - begin, -1, sequence.shape[-1])

    return part


def _outgoing(output: Tensor | None, last: Tensor | None, steps: int) -> Sequences:
    """Return what gives the gradient of outputs, and of the last one once more."""
    outputs = _given(output)

    def part(begin: int, end: int) -> Tensor | None:
        found = outputs(begin, end)
        if last is None or end < steps:
            return found
        shape = (end - begin, last.numel() // last.shape[-1], last.shape[-1])
        total = last.new_zeros(shape) if found is None else found.clone()
        total[-1] += last.reshape(shape[1:])
        return total

    return part


class _SparseRecurrence(torch.autograd.Function):
    """The loop along edges as one node of the graph, for all of time."""

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
        loop = _loop(plan, edges, x.shape, weight, bias, params)
        bits = sparse_recurrence.packed(loop, first.detach())
        output = sparse_recurrence.large_empty(x.shape, x.dtype)
        ends, checkpoints = sparse_recurrence.forward(
            loop, _given(x), bits, states, output=output, keep=plan.has_backward
        )
        results = [output, output[-1].clone(), *(end.reshape(x.shape[1:]) for end in ends.clone())]
        ctx.plan, ctx.edges = plan, edges
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, bits, checkpoints, weight, bias, *params)
        smooth = zip(results, plan.smooth_results, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in smooth if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, edges = ctx.plan, ctx.edges
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        x, bits, checkpoints, weight, bias, *params = saved_tensors(ctx)
        loop = _loop(plan, edges, x.shape, weight, bias, params)
        # nothing of the connection is reached where no input of a step is
        reached = plan.given(grads, len(x)).reached
        _, _, *needs = ctx.needs_input_grad
        wanted = Wanted(*(need and "x" in reached for need in needs[:4]))
        of_output, of_last, *of_ends = [g if g is None else g.resolve_neg() for g in grads]
        back = (_outgoing(of_output, of_last, len(x)), of_ends)
        kept = Kept(bits, checkpoints)
        found = sparse_recurrence.backward(loop, _given(x), kept, back, wanted)
        shape = x.shape[1:]
        named = zip(plan.program.states, found.states, strict=True)
        first = found.first
        return (
            None,
            None,
            None if found.x is None else found.x.view(x.shape),
            None if first is None else first.view(len(first), *shape),
            found.weight,
            found.bias,
            *[grad.reshape(shape) if f"s_{name}" in reached else None for name, grad in named],
            *[g if f"p_{n}" in reached else None for n, g in _by_name(plan, found.params)],
        )


def _by_name(plan: RecurrentPlan, found: dict[str, Tensor]) -> list[tuple[str, Tensor | None]]:
    return [(name, found.get(name)) for name in plan.program.params]
