"""Run a layer's ``step`` over a whole sequence with its output fed back through a matrix.

Recurrence. ``snn.Recurrent`` with an exact ``nn.Linear`` or ``snn.DelayedLinear`` is one loop over
time on the CPU; a task is eight samples. The output of a step is multiplied by one matrix for each
delay, by its events, or densely where more than 0.4 of four rows are not zero; so are cotangents.
Backward keeps the sum that each step was given, and the weight's gradient is one product over all
of time. A weight that is not finite runs by step: a skipped ``0 * inf`` would hide the NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.torch_private import observed_by, saved_tensors
from tracetorch.fuse.dispatch.backends import log_fallback, select_backend
from tracetorch.fuse.dispatch.operators import incoming_gradients, no_memory, no_second_gradient
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.ir.kernel import Role
from tracetorch.fuse.ir.plan import SCRATCH, RecurrentPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime.allocation import large_empty, layout_of, strided
from tracetorch.fuse.runtime.cpu import kernel_of, parameter_gradients

_ROWS = 8  # of a task: enough to read the matrix seldom, few enough to share out a small batch


def run_recurrence(
    cell: Cell,
    x: Tensor,
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, last output and final states of a loop with matrices, ``None``: by step.

    ::

        output[t] = step(x[t] + bias + sum_j  weight[..., j] @ output[t - taps + j])

    The inputs are ``[T, ...]``, neurons last, in the dtype of the arithmetic; ``first`` are the
    outputs before them ``[taps, ...]``; ``weight`` is ``[N, N, taps]``, or ``[N, N]`` for one.
    """
    active = [state for state in states if state is not None]
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    connection = [weight] if bias is None else [weight, bias]
    if observed_by((x, first, *connection, *active, *tensors)) is not None:
        return None
    backend = select_backend(x.device)
    if backend is not None and (backend.name != "cpu" or backend.tried):
        untried = "cannot be tried on a sample before it is believed"
        reason = untried if backend.name == "cpu" else "is for the CPU"
        log_fallback(f"Recurrent({cell.name}, ...)", f"its loop over all steps {reason}")
        return None
    plan = recurrent_plan_for(cell, x, active, kwargs, first, weight, bias)
    # a product by events skips zeros, which an infinite weight would make NaN
    if plan is None or not weight.detach().sum().isfinite():
        return None
    given = *active, *plan.program.tensors(kwargs)
    if plan.has_backward:
        output, last, *ends = _Recurrence.apply(plan, x, first, weight, bias, *given)  # type: ignore[no-untyped-call]
    else:
        (output, last, *ends), _ = _forward(plan, x, first, weight, bias, *given)
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
        results, kept = _forward(plan, x, first, weight, bias, *tensors)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, first, weight, *tensors)
        smooth = zip(results, plan.smooth_results, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in smooth if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        x, checkpoints, first, weight, *tensors = saved_tensors(ctx)
        plan: RecurrentPlan = ctx.plan.given(grads, len(x))
        try:
            incoming = incoming_gradients(x, grads, 1 + len(plan.program.states))
            d_x, d_first, d_weight, d_states, d_params = _backward(
                plan, x, checkpoints, first, weight, tensors, incoming
            )
        except torch.OutOfMemoryError as error:
            raise no_memory(plan, len(x), error) from error
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


# The memory around the loops


class _Shape(NamedTuple):
    """Sizes of one call: rows of neurons over time; ``every`` steps between checkpoints."""

    steps: int
    every: int
    neurons: int
    rows: int
    taps: int


def _shape_of(plan: RecurrentPlan, like: Tensor, taps: int) -> _Shape:
    """Return the sizes of a call; a core's cache holds the states of a segment."""
    steps, neurons = len(like), like.shape[-1]
    rows = like[0].numel() // neurons
    every = max(1, SCRATCH // (min(_ROWS, rows) * neurons * max(1, len(plan.recomputed))))
    return _Shape(steps, min(every, steps), neurons, rows, taps)


def _run(
    plan: RecurrentPlan,
    backward: bool,
    shape: _Shape,
    matrices: Tensor,
    buffers: dict[Role, Sequence[Any]],
) -> None:
    """Run one of the two loops with matrices ``[taps, N, N]`` on its other buffers."""
    build = recurrent_backward_kernel if backward else recurrent_forward_kernel
    kernel, (steps, every, neurons, rows, taps) = kernel_of(plan, backward, build), shape
    lanes, per_task = rows * neurons, min(_ROWS, rows)
    buffers[Role.MATRIX] = (_panels(matrices, kernel.printed.panel),)
    sizes = steps, every, (steps - 1) // every + 1, taps
    geometry = (neurons, lanes, rows, per_task, neurons, neurons, 1)
    # a product costs each lane about as much as half a line for each neuron
    work = steps * lanes * (4 + kernel.lines + taps * neurons // 2)
    scratch = kernel.scratch(sizes, per_task * neurons)
    kernel.run(geometry, sizes, buffers, -(-rows // per_task), work, scratch)


def _by_delay(weight: Tensor) -> Tensor:
    """Return the weight ``[N, N]`` or ``[N, N, taps]`` as ``[taps, N, N]``, the newest first."""
    weight = weight.detach()
    return weight.unsqueeze(0) if weight.ndim == 2 else weight.permute(2, 0, 1).flip(0)


def _panels(matrices: Tensor, panel: int) -> Tensor:
    """Copy square matrices into panels of as many columns, one after the other."""
    taps, size, _ = matrices.shape
    count = -(-size // panel)
    panels = torch.zeros(taps, count, size, panel, dtype=matrices.dtype, device="cpu")
    for i in range(count):
        part = matrices[..., i * panel : (i + 1) * panel]
        panels[:, i, :, : part.shape[-1]] = part
    return panels


def _forward(
    plan: RecurrentPlan,
    given: Tensor,
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *tensors: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs, last output, final states; and for backward the sums given, checkpoints."""
    neurons, steps, dtype = given.shape[-1], len(given), given.dtype
    count = len(plan.program.states)
    states, params = tensors[:count], tensors[count:]
    shape = _shape_of(plan, given, len(first))
    if not layout_of(given, -1).in_order:  # rows of neurons must lie together
        given = given.contiguous()
    output = large_empty(given.shape, dtype)
    # one step is enough where neither a later step nor the backward pass reads it
    is_sequence = plan.has_backward or shape.taps > 1
    x = large_empty(given.shape if is_sequence else given.shape[1:], dtype)
    last = given.new_empty(given.shape[1:])
    ends = [torch.empty_like(last) for _ in states]
    kept = len(plan.recomputed) if plan.has_backward else 0
    lanes = shape.rows * neurons
    checkpoints = given.new_empty((steps - 1) // shape.every * kept * lanes)
    if not kept:
        shape = shape._replace(every=steps)
    shift = given.new_zeros(neurons) if bias is None else bias
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [strided(given, layout_of(given, -1))],
        Role.PARAMETER: [param.contiguous() for param in params],
        Role.BIAS: (shift.contiguous(),),
        Role.DRIVE: [(x, lanes if is_sequence else 0, neurons)],
        Role.FIRST_OUTPUT: (first.contiguous(),),
        Role.OUTPUT: (output,),
        Role.LAST_OUTPUT: (last,),
        Role.START: [state.contiguous() for state in states],
        Role.END: ends,
        Role.CHECKPOINTS: (checkpoints,),
    }
    _run(plan, False, shape, _by_delay(weight).transpose(1, 2), buffers)
    return [output, last, *ends], [x, checkpoints]


def _backward(
    plan: RecurrentPlan,
    x: Tensor,
    checkpoints: Tensor,
    first: Tensor,
    weight: Tensor,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], dict[str, Tensor]]:
    """Return the gradients of input, first outputs, weight if it learns, states, and parameters."""
    program, dtype, learns = plan.program, x.dtype, plan.needs_weight_gradient
    shape = _shape_of(plan, x, len(first))
    g_output, *after = grads
    layout = layout_of(x, -1)
    d_x = large_empty(x.shape, dtype)
    output = large_empty(x.shape if learns else (0,), dtype)
    d_first = x.new_empty(first.shape)
    d_states = [x.new_empty(x.shape[1:]) for _ in program.states]
    # of each task; in float64, which sums over time and batch need
    tasks = -(-shape.rows // _ROWS)
    sums = torch.zeros((tasks, len(plan.trained), shape.neurons), dtype=torch.float64, device="cpu")
    starts = dict(zip(program.states, tensors, strict=False))
    params = [param.contiguous() for param in tensors[len(starts) :]]
    after = [grad.contiguous() for grad in after]
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [(x.contiguous(), shape.rows * shape.neurons, shape.neurons)],
        Role.PARAMETER: params,
        Role.CHECKPOINTS: (checkpoints,),
        Role.START: [starts[name].contiguous() for name in plan.recomputed],
        Role.GRAD_OUTPUT: [strided(g_output, layout)],
        Role.GRAD_LAST_OUTPUT: after[:1],
        Role.GRAD_END: after[1:],
        Role.GRAD_INPUT: (d_x,),
        Role.OUTPUT: (output,) if learns else [],
        Role.GRAD_FIRST_OUTPUT: (d_first,),
        Role.GRAD_START: d_states,
        Role.SUMS: (sums,),
    }
    _run(plan, True, shape, _by_delay(weight), buffers)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(plan, params, sums.numpy().sum(0))
    d_weight = _weight_gradient(d_x, output, first, weight) if learns else None
    return d_x, d_first, d_weight, d_states, d_params


def _weight_gradient(d_x: Tensor, output: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, ``[N, N]`` or ``[N, N, taps]``: a product for each tap."""
    neurons, taps = d_x.shape[-1], len(first)
    # in memory as the weight of a linear layer with delays, and that of one matrix as it is
    total = d_x.new_empty(taps, neurons, neurons)
    total = total.permute(2, 1, 0) if taps > 1 else total.permute(1, 2, 0)
    for tap in range(taps):
        # of what is so many steps from the oldest one in the window of each step
        early, part = min(taps - tap, len(d_x)), total[..., tap]
        pairs = (d_x[:early], first[tap : tap + early]), (d_x[early:], output[: len(d_x) - early])
        (d_one, one), (d_two, two) = [[e.reshape(-1, neurons) for e in pair] for pair in pairs]
        torch.mm(d_one.t(), one, out=part)
        part.addmm_(d_two.t(), two)
    return total.squeeze(-1) if weight.ndim == 2 else total
