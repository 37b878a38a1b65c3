"""Run the printed time loops of a linear recurrence on the CPU: memory and threads around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.ir.kernel import Role
from tracetorch.fuse.ir.plan import SCRATCH, RecurrentPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime.cpu import Kernel, kernel_of, parameter_gradients
from tracetorch.fuse.runtime.layout import layout_of, strided
from tracetorch.fuse.runtime.memory import large_empty
from tracetorch.fuse.runtime.threads import run_tasks

_ROWS = 8  # of a task: enough to read the matrix seldom, few enough to share out a small batch


class _Shape(NamedTuple):
    """Sizes of one call.

    Args:
        steps: of time.
        every: steps from one checkpoint to the next.
        neurons: lanes of a row.
        rows: samples.
        per_task: of them, those that a task walks through time together.
    """

    steps: int
    every: int
    neurons: int
    rows: int
    per_task: int

    @property
    def lanes(self) -> int:
        return self.rows * self.neurons

    @property
    def tasks(self) -> int:
        return -(-self.rows // self.per_task)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Steps, steps of a segment, segments."""
        return self.steps, self.every, (self.steps - 1) // self.every + 1


def _shape(plan: RecurrentPlan, steps: int, neurons: int, lanes: int) -> _Shape:
    rows = lanes // neurons
    per_task = min(_ROWS, rows)
    every = max(1, SCRATCH // (per_task * neurons * max(1, len(plan.recomputed))))
    return _Shape(steps, min(every, steps), neurons, rows, per_task)


def _panels(matrix: Tensor, panel: int) -> Tensor:
    """Copy a matrix into panels of as many columns, one after the other."""
    size = len(matrix)
    count = -(-size // panel)
    padded = torch.zeros(size, count * panel, dtype=matrix.dtype, device="cpu")
    padded[:, :size] = matrix.detach()
    return padded.view(size, count, panel).transpose(0, 1).contiguous()


def _run(kernel: Kernel, shape: _Shape, buffers: dict[Role, Sequence[Any]]) -> None:
    """Run a kernel on its buffers."""
    neurons, lanes = shape.neurons, shape.lanes
    geometry = (neurons, lanes, shape.rows, shape.per_task, neurons, neurons, 1)
    arguments = kernel.arguments(geometry, shape.sizes, buffers)
    # a product costs each lane about as much as half a line for each neuron
    work = shape.steps * lanes * (4 + kernel.lines + neurons // 2)
    scratch = kernel.scratch(shape.sizes, shape.per_task * neurons) if kernel.has_scratch else ()
    run_tasks(kernel.tasks, arguments, shape.tasks, work=work, scratch=scratch)


# Forward


def forward(
    plan: RecurrentPlan,
    given: Tensor,
    previous: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs, the last output and final states; and what the backward pass needs.

    That is the sum that the step is given, for every step, and the checkpoints of the states.
    """
    dtype, neurons, steps = plan.program.dtype, given.shape[-1], given.shape[0]
    shape = _shape(plan, steps, neurons, given[0].numel())
    layout = layout_of(given, -1)
    if not layout.in_order:  # rows of neurons must lie together
        given = given.contiguous()
        layout = layout_of(given, -1)
    output = large_empty(given.shape, dtype)
    x = large_empty(given.shape if plan.has_backward else given.shape[1:], dtype)
    ends = [torch.empty(given.shape[1:], dtype=dtype, device="cpu") for _ in (previous, *states)]
    kept = len(plan.recomputed) if plan.has_backward else 0
    size = (steps - 1) // shape.every * kept * shape.lanes
    checkpoints = torch.empty(size, dtype=dtype, device="cpu")
    if not kept:
        shape = shape._replace(every=steps)
    kernel = kernel_of(plan, False, recurrent_forward_kernel)
    shift = (given.new_zeros(neurons) if bias is None else bias).contiguous()
    matrix = _panels(weight.t(), kernel.printed.panel)
    params = [param.contiguous() for param in params]
    starts = [previous.contiguous(), *(state.contiguous() for state in states)]
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [strided(given, layout)],
        Role.PARAMETER: params,
        Role.LITERALS: (kernel.literals,),
        Role.MATRIX: (matrix,),
        Role.BIAS: (shift,),
        # one step is enough where there is no backward pass
        Role.DRIVE: [(x, shape.lanes if plan.has_backward else 0, neurons)],
        Role.FIRST_OUTPUT: starts[:1],
        Role.OUTPUT: (output,),
        Role.LAST_OUTPUT: ends[:1],
        Role.START: starts[1:],
        Role.END: ends[1:],
        Role.CHECKPOINTS: (checkpoints,),
    }
    _run(kernel, shape, buffers)
    return [output, *ends], [x, checkpoints]


# Backward


class Gradients(NamedTuple):
    """Gradients of a recurrence.

    Args:
        x: of the input.
        previous: of the output before the first step.
        weight: of the matrix; ``None`` where the plan does not need it.
        states: of the initial states.
        params: of the parameters by name; those that the plan trains.
    """

    x: Tensor
    previous: Tensor
    weight: Tensor | None
    states: list[Tensor]
    params: dict[str, Tensor]


def backward(
    plan: RecurrentPlan,
    x: Tensor,
    checkpoints: Tensor,
    previous: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> Gradients:
    """Return the gradients, from those of outputs, last output and final states.

    Args:
        plan: the same as forward.
        x: what the step was given, as forward returned it.
        checkpoints: as forward returned them.
        previous: the output before the first step.
        weight: of the connection.
        states: before the first step.
        params: as forward was given them.
        grads: in the order of its results.
    """
    program, dtype, neurons, steps = plan.program, plan.program.dtype, x.shape[-1], x.shape[0]
    shape = _shape(plan, steps, neurons, x[0].numel())
    g_output, g_last, *g_ends = grads
    layout = layout_of(x, -1)
    d_x = large_empty(x.shape, dtype)
    output = large_empty(x.shape if plan.needs_weight_gradient else (0,), dtype)
    d_starts = [torch.empty(x.shape[1:], dtype=dtype, device="cpu") for _ in (previous, *states)]
    # in float64: a parameter's gradient sums over time and batch
    size = (shape.tasks, len(plan.trained), neurons)
    sums = torch.zeros(size, dtype=torch.float64, device="cpu")
    starts = dict(zip(program.states, states, strict=True))
    kernel = kernel_of(plan, True, recurrent_backward_kernel)
    matrix = _panels(weight, kernel.printed.panel)
    params = [param.contiguous() for param in params]
    before = [starts[name].contiguous() for name in plan.recomputed]
    after = [g_last.contiguous(), *(grad.contiguous() for grad in g_ends)]
    x = x.contiguous()
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [(x, shape.lanes, neurons)],
        Role.PARAMETER: params,
        Role.LITERALS: (kernel.literals,),
        Role.MATRIX: (matrix,),
        Role.CHECKPOINTS: (checkpoints,),
        Role.START: before,
        Role.GRAD_OUTPUT: [strided(g_output, layout)],
        Role.GRAD_LAST_OUTPUT: after[:1],
        Role.GRAD_END: after[1:],
        Role.GRAD_INPUT: (d_x,),
        Role.OUTPUT: (output,) if plan.needs_weight_gradient else [],
        Role.GRAD_FIRST_OUTPUT: d_starts[:1],
        Role.GRAD_START: d_starts[1:],
        Role.SUMS: (sums,),
    }
    _run(kernel, shape, buffers)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(plan, params, sums.numpy().sum(0))
    d_weight = _weight_gradient(d_x, output, previous) if plan.needs_weight_gradient else None
    return Gradients(d_x, d_starts[0], d_weight, d_starts[1:], d_params)


def _weight_gradient(d_x: Tensor, output: Tensor, previous: Tensor) -> Tensor:
    """Return the gradient of the connection's weight, one product over all of time."""
    neurons = d_x.shape[-1]
    first = d_x[0].reshape(-1, neurons).t() @ previous.reshape(-1, neurons)
    return first.addmm_(d_x[1:].reshape(-1, neurons).t(), output[:-1].reshape(-1, neurons))
