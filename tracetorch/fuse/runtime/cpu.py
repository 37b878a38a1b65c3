"""Run the printed time loops on the CPU: layout, memory and threads around the Numba kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen.numba_loops import (
    backward_arguments,
    backward_source,
    forward_arguments,
    forward_source,
)
from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.ir.plan import TILE, Plan
from tracetorch.fuse.runtime.kernel_cache import compiled
from tracetorch.fuse.runtime.layout import Layout, allocate_results, strided
from tracetorch.fuse.runtime.memory import scratch
from tracetorch.fuse.runtime.threads import parallel_for

_INTEGERS = frozenset(("first", "last", "steps", "every", "columns", "lanes", "rows", "per_group"))
_SMALL = 16_000_000  # lane steps times lines of arithmetic that one thread does sooner alone
_TASKS = 64  # enough to share evenly among threads, few enough for their partial sums


class _Grid(NamedTuple):
    """The division of the lanes into tasks: a task is a tile of columns, and a group of rows.

    Args:
        columns: lanes of a row.
        rows: how many there are.
        per_group: rows of a group, which a task runs one after the other.
        groups: how many there are.
        tasks: tiles times groups.
        repeats: narrow rows of the layout that lie in one row of the grid.
    """

    columns: int
    rows: int
    per_group: int
    groups: int
    tasks: int
    repeats: int


def _grid(layout: Layout) -> _Grid:
    """Divide the lanes of a layout into tasks; narrow rows share a tile."""
    width = layout.neurons * layout.inner
    # Narrow rows lie side by side in a tile, so that its vector operations have full width.
    repeats = max(1, min(TILE // max(1, width), layout.outer))
    columns = width * repeats
    rows = -(-layout.outer // repeats)
    tiles = -(-columns // TILE)
    per_group = max(1, tiles * rows // _TASKS)
    groups = -(-rows // per_group)
    return _Grid(columns, rows, per_group, groups, tiles * groups, repeats)


class _Kernel(NamedTuple):
    """A compiled kernel of a plan.

    Args:
        run: the kernel.
        slots: widths of a tile that it needs as scratch.
        real: NumPy's type of the arithmetic.
        literals: the numbers of the program, as the kernel reads them.
        lines: lines of arithmetic in one step.
    """

    run: Callable[..., None]
    slots: int
    real: Any
    literals: Any
    lines: int


def _kernel(plan: Plan, backward: bool) -> _Kernel:
    """Return a kernel of a plan, compiled at the first call."""
    kernel: _Kernel | None = plan.kernels.get(backward)
    if kernel is None:
        kernel = plan.kernels[backward] = _compile(plan, backward)
    return kernel


def _compile(plan: Plan, backward: bool) -> _Kernel:
    source, slots = backward_source(plan) if backward else forward_source(plan)
    arguments = backward_arguments(plan) if backward else forward_arguments(plan)
    kernel = compiled(source, "backward" if backward else "forward", signature(arguments, plan))
    real = np.dtype(real_name(plan.program.dtype)).type
    graph = plan.backward if backward else plan.program.forward
    return _Kernel(kernel, slots, real, np.array(plan.literals, real), len(graph.lines))


def signature(arguments: Sequence[str], plan: Plan) -> Any:
    """Return Numba's types of a kernel's arguments."""
    from numba import types

    real = getattr(types, real_name(plan.program.dtype))

    def kind(name: str) -> Any:
        if name in _INTEGERS or name.startswith(("x_", "g_step", "g_row", "h_step_", "h_row_")):
            return types.int64
        return (types.float64 if name == "sums" else real)[::1]

    return types.void(*map(kind, arguments))


def _flat(tensor: Tensor, layout: Layout) -> Any:
    """Return a sequence or one step as flat memory."""
    arranged = tensor if layout.in_order else layout.arrange(tensor)
    return arranged.contiguous().detach().numpy().reshape(-1)


def _results(tensors: Sequence[Tensor], layout: Layout) -> list[Any]:
    """Return new tensors of this layout as flat memory that the kernel fills."""
    if not layout.in_order:
        tensors = [layout.arrange(tensor) for tensor in tensors]
    return [tensor.detach().numpy().reshape(-1) for tensor in tensors]


def write_parameters(params: Sequence[Tensor], places: Any) -> None:
    """Write each parameter into its place ``[..., neurons, inner]``, one value in each lane."""
    for place, param in zip(places, params, strict=True):
        # not .numpy(): FSDP could not free the memory between two passes
        place[...] = np.from_dlpack(param.detach()).reshape(-1, 1)


def _packed_parameters(params: Sequence[Tensor], layout: Layout, grid: _Grid, real: Any) -> Any:
    """Return the parameters of the lanes of a row, one after the other."""
    packed = np.empty((len(params), grid.repeats, layout.neurons, layout.inner), real)
    write_parameters(params, packed)
    return packed.reshape(-1)


def _sequence(tensor: Tensor, layout: Layout, grid: _Grid) -> tuple[int, int, Any]:
    """Return the strides of time and of the grid's rows, and the flat memory, of a sequence."""
    if layout.in_order and tensor.is_contiguous():
        return layout.lanes, grid.columns, tensor.detach().numpy().reshape(-1)
    flat, step, row = strided(tensor, layout)
    if grid.repeats > 1 and row != layout.neurons * layout.inner:
        # Rows of a grid are several rows of the layout: they must follow each other without gaps.
        flat, step, row = strided(layout.restore(layout.arrange(tensor).contiguous()), layout)
    return step, row * grid.repeats, flat.detach().numpy()


# Forward


def forward(
    plan: Plan, layout: Layout, x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor]
) -> list[Tensor]:
    """Return outputs, final states, trajectories, and the checkpoints for the backward pass."""
    steps = x.shape[0]
    output, ends, records, checkpoints = allocate_results(plan, layout, x)
    results = [output, *ends, *records, checkpoints]
    if layout.lanes == 0:
        return results
    grid, kernel = _grid(layout), _kernel(plan, False)
    # In the order of numba_loops.forward_arguments.
    arguments = (
        # Without checkpoints the whole sequence is one segment.
        *(steps, plan.checkpoint_interval if plan.checkpoints(steps) else steps),
        *(grid.columns, layout.lanes, grid.rows, grid.per_group),
        *_sequence(x, layout, grid),
        *(_packed_parameters(params, layout, grid, kernel.real), kernel.literals),
        *_results([output], layout),
        *[_flat(state, layout) for state in states],
        *_results(ends + records, layout),
        checkpoints.numpy(),
    )

    def run(first: int, last: int) -> None:
        kernel.run(first, last, *arguments, scratch(0, kernel.slots * TILE, kernel.real))

    work = steps * layout.lanes * (4 + kernel.lines)
    parallel_for(run, grid.tasks, small=work < _SMALL)
    return results


# Backward


def backward(
    plan: Plan,
    layout: Layout,
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    checkpoints: Tensor,
    grads: Sequence[Tensor],
) -> list[Tensor]:
    """Return the gradients of ``x``, states and parameters; an empty tensor for one not needed."""
    program, dtype, steps = plan.program, plan.program.dtype, x.shape[0]
    # Gradients come in the order of the results: output, final states, trajectories.
    g_output, *rest = grads
    g_ends, g_records = rest[: len(states)], rest[len(states) :]
    grid = _grid(layout)
    nothing = torch.empty(0, dtype=dtype)
    new = layout.allocate(x, dtype, sequences=int(plan.needs_input_gradient), steps=len(states))
    d_x, d_states = (new[0], new[1:]) if plan.needs_input_gradient else (nothing, new)
    # in float64: a parameter's gradient sums over time, batch and space
    sums = np.zeros((grid.groups, len(plan.trained), grid.columns))
    if layout.lanes:
        kernel = _kernel(plan, True)
        starts = dict(zip(program.states, states, strict=True))
        record_gradients: list[Any] = []
        for grad in g_records:
            record_gradients += _sequence(grad, layout, grid)
        # In the order of numba_loops.backward_arguments.
        arguments = (
            *(steps, plan.checkpoint_interval),
            *(grid.columns, layout.lanes, grid.rows, grid.per_group),
            *_sequence(x, layout, grid),
            *(_packed_parameters(params, layout, grid, kernel.real), kernel.literals),
            checkpoints.detach().numpy(),
            *[_flat(starts[name], layout) for name in plan.recomputed],
            *_sequence(g_output, layout, grid),
            *[_flat(grad, layout) for grad in g_ends],
            *record_gradients,
            *_results(new, layout),
            sums.reshape(-1),
        )
        # Scratch for the states of one segment, recomputed from its checkpoint.
        past = max(1, len(plan.recomputed)) * min(plan.checkpoint_interval, steps) * TILE

        def run(first: int, last: int) -> None:
            tile = scratch(1, kernel.slots * TILE, kernel.real)
            kernel.run(first, last, *arguments, tile, scratch(2, past, kernel.real))

        work = steps * layout.lanes * (4 + kernel.lines)
        parallel_for(run, grid.tasks, small=work < _SMALL)
    # Sum over groups, repeated rows and inner lanes; a value for the whole layer sums neurons too.
    d_params = dict.fromkeys(program.params, nothing)
    shape = (grid.groups, len(plan.trained), grid.repeats, layout.neurons, layout.inner)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        for name, total in zip(plan.trained, sums.reshape(shape).sum((0, 2, 4)), strict=True):
            like = params[program.params.index(name)]
            value = total if like.numel() != 1 or layout.neurons == 1 else total.sum()
            d_params[name] = torch.as_tensor(value, dtype=dtype).reshape(like.shape)
    return [d_x, *d_states, *d_params.values()]
