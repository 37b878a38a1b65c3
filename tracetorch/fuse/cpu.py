"""Runs the printed time loops on the CPU: layout, memory, threads around the Numba kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.cache import compiled
from tracetorch.fuse.layout import Layout, layout_of, strided
from tracetorch.fuse.memory import scratch
from tracetorch.fuse.numba import (
    backward_arguments,
    backward_source,
    forward_arguments,
    forward_source,
    real_name,
)
from tracetorch.fuse.plan import TILE, Plan
from tracetorch.fuse.threads import share_out

_INTEGERS = frozenset(("first", "last", "steps", "every", "columns", "lanes", "rows", "per_group"))
_SMALL = 16_000_000  # lane steps times lines of arithmetic that one thread does sooner alone
_TASKS = 64  # enough to share out evenly, few enough for their partial sums


@dataclass(frozen=True)
class _Grid:
    """How the lanes are cut: rows of ``columns`` lanes, some rows to a group, tiles of columns."""

    columns: int
    rows: int
    per_group: int
    repeats: int

    @property
    def groups(self) -> int:
        return -(-self.rows // self.per_group)

    @property
    def tasks(self) -> int:
        return -(-self.columns // TILE) * self.groups


def _grid(layout: Layout) -> _Grid:
    """The cut for a layout; narrow rows share a tile."""
    width = layout.neurons * layout.inner
    repeats = max(1, min(TILE // max(1, width), layout.outer))
    rows = -(-layout.outer // repeats)
    tiles = -(-width * repeats // TILE)
    return _Grid(width * repeats, rows, max(1, tiles * rows // _TASKS), repeats)


@functools.lru_cache(maxsize=256)
def _kernel(plan: Plan, backward: bool) -> tuple[Callable[..., None], int]:
    printed = backward_source(plan) if backward else forward_source(plan)
    arguments = backward_arguments(plan) if backward else forward_arguments(plan)
    name = "backward" if backward else "forward"
    return compiled(printed[0], name, signature(arguments, plan)), printed[1]


def signature(arguments: Sequence[str], plan: Plan) -> Any:
    """Numba's types of a kernel's arguments."""
    from numba import types

    real = getattr(types, real_name(plan.program.dtype))

    def kind(name: str) -> Any:
        if name in _INTEGERS or name.startswith(("x_", "g_step", "g_row", "h_step_", "h_row_")):
            return types.int64
        return (types.float64 if name == "sums" else real)[::1]

    return types.void(*map(kind, arguments))


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().numpy().reshape(-1)


def spread(params: Sequence[Tensor], places: Any) -> None:
    """Write each parameter into its place ``[..., neurons, inner]``, one value in each lane."""
    for place, param in zip(places, params, strict=True):
        # not .numpy(): FSDP could not free the memory between two passes
        place[...] = np.from_dlpack(param.detach()).reshape(-1, 1)


def _pack(params: Sequence[Tensor], layout: Layout, grid: _Grid, real: Any) -> Any:
    """The parameters of the lanes of a row, one after the other."""
    packed = np.empty((len(params), grid.repeats, layout.neurons, layout.inner), real)
    spread(params, packed)
    return packed.reshape(-1)


def _sequence(given: Tensor, layout: Layout, grid: _Grid) -> tuple[Any, int, int]:
    """A sequence as flat memory with the strides of time and of the grid's rows."""
    flat, step, row = strided(given, layout)
    if grid.repeats > 1 and row != layout.neurons * layout.inner:
        flat, step, row = strided(layout.restore(layout.arrange(given).contiguous()), layout)
    return flat.detach().numpy(), step, row * grid.repeats


def forward(plan: Plan, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Outputs, final states, trajectories, and the states kept for the backward pass."""
    program, layout, steps = plan.program, layout_of(x, plan.dim), x.shape[0]
    grid = _grid(layout)
    output = layout.empty(x, steps=steps, dtype=program.dtype)
    ends = [layout.empty(x, steps=None, dtype=program.dtype) for _ in program.states]
    records = [layout.empty(x, steps=steps, dtype=program.dtype) for _ in plan.record]
    kept = plan.marks(steps)
    marks = torch.empty(kept * len(plan.recomputed) * layout.lanes, dtype=program.dtype)
    if layout.lanes == 0:
        return [output, *ends, *records, marks]
    kernel, slots = _kernel(plan, False)
    real = np.dtype(real_name(program.dtype)).type
    flat_x, x_step, x_row = _sequence(x, layout, grid)
    arguments = (
        *(steps, plan.every if kept else steps, grid.columns, layout.lanes, grid.rows),
        *(grid.per_group, x_step, x_row, flat_x),
        *(_pack(params, layout, grid, real), np.array(plan.literals, real)),
        _flat(layout.arrange(output)),
        *(_flat(layout.arrange(state)) for state in states),
        *(_flat(layout.arrange(end)) for end in ends),
        *(_flat(layout.arrange(record)) for record in records),
        _flat(marks),
    )

    def run(first: int, last: int) -> None:
        kernel(first, last, *arguments, scratch(0, slots * TILE, real))

    work = steps * layout.lanes * (4 + len(program.forward.lines))
    share_out(run, grid.tasks, small=work < _SMALL)
    return [output, *ends, *records, marks]


def backward(
    plan: Plan,
    x: Tensor,
    states: list[Tensor],
    params: list[Tensor],
    marks: Tensor,
    grads: list[Tensor],
) -> list[Tensor]:
    """The gradients of ``x``, states and parameters; an empty tensor for one not needed."""
    program, layout, steps = plan.program, layout_of(x, plan.dim), x.shape[0]
    g_output, *rest = grads
    g_ends, g_records = rest[: len(states)], rest[len(states) :]
    grid = _grid(layout)
    nothing = torch.empty(0, dtype=program.dtype)
    d_x = layout.empty(x, steps=steps, dtype=program.dtype) if plan.x else nothing
    d_states = [layout.empty(x, steps=None, dtype=program.dtype) for _ in states]
    sums = np.zeros((grid.groups, len(plan.trained), grid.columns))
    if layout.lanes:
        kernel, slots = _kernel(plan, True)
        real = np.dtype(real_name(program.dtype)).type
        flat_x, x_step, x_row = _sequence(x, layout, grid)
        flat_g, g_step, g_row = _sequence(g_output, layout, grid)
        starts = {
            name: _flat(layout.arrange(state))
            for name, state in zip(program.states, states, strict=True)
        }
        arguments = (
            *(steps, plan.every, grid.columns, layout.lanes, grid.rows, grid.per_group),
            *(x_step, x_row, flat_x),
            *(_pack(params, layout, grid, real), np.array(plan.literals, real), _flat(marks)),
            *(starts[name] for name in plan.recomputed),
            *(g_step, g_row, flat_g),
            *(_flat(layout.arrange(grad).contiguous()) for grad in g_ends),
            *(
                part
                for grad in g_records
                for flat, step, row in [_sequence(grad, layout, grid)]
                for part in (step, row, flat)
            ),
            *([_flat(layout.arrange(d_x))] if plan.x else []),
            *(_flat(layout.arrange(d_state)) for d_state in d_states),
            sums.reshape(-1),
        )
        past = max(1, len(plan.recomputed)) * min(plan.every, steps) * TILE

        def run(first: int, last: int) -> None:
            kernel(first, last, *arguments, scratch(1, slots * TILE, real), scratch(2, past, real))

        work = steps * layout.lanes * (4 + len(plan.backward.lines))
        share_out(run, grid.tasks, small=work < _SMALL)
    d_params = dict.fromkeys(program.params, nothing)
    shape = (grid.groups, len(plan.trained), grid.repeats, layout.neurons, layout.inner)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        for name, total in zip(plan.trained, sums.reshape(shape).sum((0, 2, 4)), strict=True):
            like = params[program.params.index(name)]
            value = total if like.numel() != 1 or layout.neurons == 1 else total.sum()
            d_params[name] = torch.as_tensor(value, dtype=program.dtype).reshape(like.shape)
    return [d_x, *d_states, *d_params.values()]
