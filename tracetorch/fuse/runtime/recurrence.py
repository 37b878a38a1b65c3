"""Run the printed time loops of a linear recurrence on the CPU: memory and threads around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen.numba_product import PANEL, QUAD
from tracetorch.fuse.codegen.numba_recurrence import (
    BACKWARD_SCRATCH,
    FORWARD_SCRATCH,
    INTEGERS,
    backward_arguments,
    backward_source,
    forward_arguments,
    forward_source,
)
from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.ir.plan import SCRATCH, TILE, RecurrentPlan
from tracetorch.fuse.runtime.cpu import Built, Kernel, kernel_of, parameter_gradients
from tracetorch.fuse.runtime.layout import Layout, layout_of, strided
from tracetorch.fuse.runtime.memory import address, large_empty, write_parameters
from tracetorch.fuse.runtime.threads import run_tasks

_ROWS = 8  # of a task: enough to read the matrix seldom, few enough to share out a small batch


def _build(plan: RecurrentPlan, backward: bool) -> Built:
    source, slots = backward_source(plan) if backward else forward_source(plan)
    arguments = backward_arguments(plan) if backward else forward_arguments(plan)
    scratch = BACKWARD_SCRATCH if backward else FORWARD_SCRATCH
    return Built(source, slots, _signature(arguments, plan), len(scratch))


def _signature(arguments: Sequence[str], plan: RecurrentPlan) -> Any:
    """Return Numba's types of a kernel's arguments."""
    from numba import types

    real = getattr(types, real_name(plan.program.dtype))
    arrays = {"sums": types.float64, "events": types.int64}
    kinds = [types.int64 if n in INTEGERS else arrays.get(n, real)[::1] for n in arguments]
    return types.void(*kinds)


class _Shape(NamedTuple):
    """Sizes of one call, the first arguments of a kernel.

    Args:
        steps: of time.
        every: steps from one checkpoint to the next.
        columns: lanes of a task.
        neurons: lanes of a row.
        lanes: values of one step.
    """

    steps: int
    every: int
    columns: int
    neurons: int
    lanes: int

    @property
    def tasks(self) -> int:
        return -(-self.lanes // self.columns)

    @property
    def padded(self) -> int:
        """Lanes of the tiles of a task."""
        return -(-self.columns // TILE) * TILE


def _shape(plan: RecurrentPlan, steps: int, neurons: int, lanes: int) -> _Shape:
    columns = min(_ROWS * neurons, lanes)
    shape = _Shape(steps, 1, columns, neurons, lanes)
    every = max(1, SCRATCH // (shape.padded * max(1, len(plan.recomputed))))
    return shape._replace(every=every)


def _panels(matrix: Tensor) -> Tensor:
    """Copy a matrix into panels of ``PANEL`` columns, one after the other."""
    size = len(matrix)
    count = -(-size // PANEL)
    padded = torch.zeros(size, count * PANEL, dtype=matrix.dtype, device="cpu")
    padded[:, :size] = matrix.detach()
    return padded.view(size, count, PANEL).transpose(0, 1).contiguous()


def _packed(params: Sequence[Tensor], shape: _Shape, dtype: torch.dtype) -> Tensor:
    """Return the parameters of the lanes of a task, one after the other."""
    rows = shape.columns // shape.neurons
    packed = torch.empty((len(params), rows, shape.neurons, 1), dtype=dtype, device="cpu")
    write_parameters(params, packed.numpy())
    return packed


def _sequence(tensor: Tensor, layout: Layout) -> tuple[int, int, Tensor]:
    """Return the strides of time and of rows, and the flat memory, of a sequence."""
    flat, step, row = strided(tensor, layout)
    return step, row, flat


def _run(
    kernel: Kernel, shape: _Shape, arguments: Sequence[int | Tensor], scratch: Sequence[int]
) -> None:
    """Run a kernel on its arguments after the sizes; what it writes to is contiguous."""
    dtype = kernel.literals.dtype
    kept = [value.contiguous() if isinstance(value, Tensor) else value for value in arguments]
    values = [value if isinstance(value, int) else address(value, dtype) for value in kept]
    # a product costs each lane about as much as half a line for each neuron
    work = shape.steps * shape.lanes * (4 + kernel.lines + shape.neurons // 2)
    product = (QUAD * PANEL * dtype.itemsize, (shape.neurons + 1) * 8)
    tiles = kernel.slots * shape.padded * dtype.itemsize
    run_tasks(
        kernel.tasks, (*shape, *values), shape.tasks, work=work, scratch=(*product, tiles, *scratch)
    )


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
    kernel = kernel_of(plan, False, _build)
    shift = given.new_zeros(neurons) if bias is None else bias
    # In the order of numba_recurrence.forward_arguments.
    arguments: tuple[int | Tensor, ...] = (
        *_sequence(given, layout),
        *(_packed(params, shape, dtype), kernel.literals, _panels(weight.t()), shift),
        shape.lanes if plan.has_backward else 0,
        *(x, previous, output, ends[0], *states, *ends[1:], checkpoints),
    )
    _run(kernel, shape, arguments, ())
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
    rows = shape.columns // neurons
    # in float64: a parameter's gradient sums over time and batch
    size = (shape.tasks, len(plan.trained), rows, neurons)
    sums = torch.zeros(size, dtype=torch.float64, device="cpu")
    starts = dict(zip(program.states, states, strict=True))
    kernel = kernel_of(plan, True, _build)
    # In the order of numba_recurrence.backward_arguments.
    arguments: tuple[int | Tensor, ...] = (
        *(x, _packed(params, shape, dtype), kernel.literals, _panels(weight), checkpoints),
        *(starts[name] for name in plan.recomputed),
        *_sequence(g_output, layout),
        *(g_last, *g_ends, d_x, output, *d_starts),
        sums.data_ptr(),
    )
    past = max(1, len(plan.recomputed)) * shape.every * shape.padded
    _run(kernel, shape, arguments, (past * dtype.itemsize, shape.columns * dtype.itemsize))
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(plan, params, sums.numpy().sum((0, 2)))
    d_weight = _weight_gradient(d_x, output, previous) if plan.needs_weight_gradient else None
    return Gradients(d_x, d_starts[0], d_weight, d_starts[1:], d_params)


def _weight_gradient(d_x: Tensor, output: Tensor, previous: Tensor) -> Tensor:
    """Return the gradient of the connection's weight, one product over all of time."""
    neurons = d_x.shape[-1]
    first = d_x[0].reshape(-1, neurons).t() @ previous.reshape(-1, neurons)
    return first.addmm_(d_x[1:].reshape(-1, neurons).t(), output[:-1].reshape(-1, neurons))
