"""Run the time loops on the CPU: layout, memory and threads around the compiled kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen.llvm_kernel import ALIGNMENT, Printed, print_kernel
from tracetorch.fuse.ir import schedule as schedules
from tracetorch.fuse.ir.kernel import PRIVATE, STRIDED, Role, Schedule, Size
from tracetorch.fuse.ir.plan import TILE, Plan
from tracetorch.fuse.runtime.allocation import LARGE, Layout, cache_size, strided, wrong_memory
from tracetorch.fuse.runtime.backend import Backend, Operands
from tracetorch.fuse.runtime.machine_code import (
    TaskKernel,
    compiled,
    this_machine,
    unavailable_reason,
)
from tracetorch.fuse.runtime.threads import run_tasks
from tracetorch.fuse.runtime.threefry import compiled_uniforms

PlanT = TypeVar("PlanT", bound=Plan)

_CHUNK = 8  # steps of a tile that are computed before those of the next block of lanes
_SHORT = 16  # lines of a short step
_WIDE_TASKS = 16  # from which on a task of a forward pass has twice as many lanes
_TASKS = 64  # at least: enough to share evenly among threads, few enough for their partial sums


class _Grid(NamedTuple):
    """The division of the lanes into tasks: a task is a tile of columns, and a group of rows.

    In one of ``rows`` of ``columns`` lie ``repeats`` narrow rows of the layout. A task runs one of
    ``groups`` of ``per_group`` rows; ``geometry`` is what ``llvm_kernel.GEOMETRY`` names.
    """

    columns: int
    rows: int
    per_group: int
    groups: int
    tasks: int
    repeats: int
    task_lanes: int
    geometry: tuple[int, ...]


@functools.lru_cache(maxsize=512)
def _grid(layout: Layout, *, grouped: bool) -> _Grid:
    """Divide lanes into tasks. Grouped, of several rows: few sums; else of one, in a near cache."""
    width = layout.neurons * layout.inner
    tile = 2 * TILE if not grouped and layout.lanes >= 2 * TILE * _WIDE_TASKS else TILE
    # Narrow rows lie side by side in a tile, so that its vector operations have full width.
    repeats = max(1, min(tile // max(1, width), layout.outer))
    columns = width * repeats
    rows = -(-layout.outer // repeats)
    tiles = -(-columns // tile)
    per_group = max(1, tiles * rows // _TASKS) if grouped else 1
    groups = -(-rows // per_group)
    geometry = (columns, layout.lanes, rows, per_group, tile, layout.neurons, layout.inner)
    tasks = tiles * groups
    return _Grid(columns, rows, per_group, groups, tasks, repeats, per_group * tile, geometry)


class CompiledKernel(NamedTuple):
    """A compiled kernel, its literals, buffers by role, own scratch, and lines in one step."""

    tasks: TaskKernel
    printed: Printed
    literals: Tensor
    lines: int
    roles: tuple[Role, ...]
    own: tuple[tuple[int, tuple[int, ...]], ...]

    def run(
        self,
        geometry: Sequence[int],
        sizes: Sequence[int],
        buffers: dict[Role, Sequence[Any]],
        tasks: int,
        work: int,
        scratch: int,
    ) -> None:
        """Run it over its tasks; one loop, for it runs for every layer of every pass."""
        arguments = [*geometry, *sizes]
        buffers[Role.LITERALS] = (self.literals,)
        for role in self.roles:
            is_strided, is_parameter = role in STRIDED, role is Role.PARAMETER
            dtype = torch.float64 if role is Role.SUMS else self.literals.dtype
            for each in buffers[role]:
                tensor = each[0] if is_strided else each
                if tensor.dtype is not dtype or not tensor.is_cpu:
                    raise wrong_memory(tensor, dtype)
                arguments.append(tensor.data_ptr())
                if is_strided:
                    arguments += each[1:]
                elif is_parameter:
                    arguments.append(tensor.numel())
        run_tasks(self.tasks, arguments, tasks, work=work, scratch=scratch)

    def scratch(self, sizes: Sequence[int], lanes: int) -> int:
        """Return the bytes of scratch of a worker, whose task has some lanes."""
        lanes = self.printed.width if self.printed.block_scratch else lanes
        return scratch_values(self.own, sizes, lanes) * self.literals.itemsize


def own_buffers(kernel: Schedule) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Return of each buffer of scratch its values for a lane: a number, and sizes to multiply."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for buffer in kernel.buffers:
        if buffer.role in PRIVATE:
            numbers = [each for each in buffer.shape if isinstance(each, int)]
            names = [each.value for each in buffer.shape if isinstance(each, Size)]
            found.append((math.prod(numbers), tuple(map(kernel.sizes.index, names))))
    return tuple(found)


def scratch_values(
    own: Sequence[tuple[int, Sequence[int]]], sizes: Sequence[int], lanes: int
) -> int:
    """Return how many values the scratch of a task has that holds some lanes at a time."""
    return lanes * sum(count * math.prod([sizes[i] for i in places]) for count, places in own)


def kernel_of(
    plan: PlanT, backward: bool, build: Callable[[PlanT], Schedule], *, bypass: bool = False
) -> CompiledKernel:
    """Return one of the two kernels of a plan, built, printed and compiled at the first call."""
    kernel: CompiledKernel | None = plan.kernels.get((backward, bypass))
    if kernel is None:
        schedule = build(plan)
        printed = print_kernel(schedule, this_machine().processor, bypass=bypass)
        tasks = compiled(printed.text, printed.name)
        graph = plan.backward if backward else plan.program.forward
        literals = torch.tensor(plan.literals, dtype=plan.program.dtype, device="cpu")
        roles = tuple([role for role in schedule.roles if role not in PRIVATE])
        printed = replace(printed, text="")  # which is long, and has done its work
        own = own_buffers(schedule)
        kernel = CompiledKernel(tasks, printed, literals, len(graph.lines), roles, own)
        plan.kernels[backward, bypass] = kernel
    return kernel


def _flat(tensors: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Return sequences or steps whose memory is in the order of the layout, without gaps."""
    return [layout.arrange(tensor).contiguous() for tensor in tensors]


def _sequences(
    tensors: Sequence[Tensor], layout: Layout, grid: _Grid
) -> list[tuple[Tensor, int, int]]:
    """Return the flat memory of each sequence, and the strides of time and of the grid's rows."""
    return [
        (each, layout.lanes, grid.columns)
        if layout.in_order and each.is_contiguous()
        else _sequence(each, layout, grid)
        for each in tensors
    ]


def _sequence(tensor: Tensor, layout: Layout, grid: _Grid) -> tuple[Tensor, int, int]:
    if not any(tensor.stride()):  # one value, as the gradient of a sum: a row stands for all
        return tensor.as_strided((grid.columns,), (0,)).contiguous(), 0, 0
    flat, step, row = strided(tensor, layout)
    if grid.repeats > 1 and row != layout.neurons * layout.inner:
        # Rows of a grid are several rows of the layout: they must follow each other without gaps.
        flat, step, row = strided(layout.restore(layout.arrange(tensor).contiguous()), layout)
    return flat, step, row * grid.repeats


def parameter_gradients(plan: Plan, params: Sequence[Tensor], totals: Any) -> dict[str, Tensor]:
    """Return the gradients by name from their sums ``[trained, neurons]``."""
    program, neurons = plan.program, totals.shape[1]
    gradients: dict[str, Tensor] = {}
    for name, total in zip(plan.trained, totals, strict=True):
        like = params[program.params.index(name)]
        value = total if like.numel() != 1 or neurons == 1 else total.sum()
        gradients[name] = torch.as_tensor(value, dtype=program.dtype).reshape(like.shape)
    return gradients


def _is_short(plan: Plan) -> bool:
    return len(plan.program.forward.lines) <= _SHORT


def _are_aligned(sequences: Sequence[Tensor], grid: _Grid) -> bool:
    """Whether every run of lanes of some sequences begins with a cache line."""
    size = sequences[0].itemsize
    places = [size * grid.columns, size * grid.geometry[1], *map(Tensor.data_ptr, sequences)]
    return not any(place % ALIGNMENT for place in places)


class _Forward(NamedTuple):
    """Numbers that all forward passes of a plan over one length and layout share."""

    grid: _Grid
    kernel: CompiledKernel
    sizes: tuple[int, ...]
    kept: int
    work: int
    scratch: int


@functools.lru_cache(maxsize=512)
def _forward_of(plan: Plan, layout: Layout, steps: int, bypass: bool) -> _Forward:
    grid, kept = _grid(layout, grouped=False), plan.checkpoints(steps)
    build = functools.partial(schedules.forward_kernel, in_chunks=True)
    kernel = kernel_of(plan, False, build, bypass=bypass)
    # Without checkpoints the whole sequence is one segment.
    every = plan.checkpoint_interval if kept else max(1, steps)
    # Of a short step memory is the limit, which likes long runs of lanes; a long one likes to
    # keep its states and parameters in registers.
    chunk = min(_CHUNK, every) if _is_short(plan) else every
    sizes = (steps, every, max(1, -(-steps // every)), chunk, -(-every // chunk))
    work = steps * layout.lanes * (4 + kernel.lines)
    values = kept * len(plan.recomputed) * layout.lanes
    scratch = kernel.scratch(sizes, grid.task_lanes)
    return _Forward(grid, kernel, sizes, values, work, scratch)


class CpuBackend(Backend):
    """Kernels for the CPU."""

    name = "cpu"
    tile = TILE
    uniforms = staticmethod(compiled_uniforms)
    uninstalled_reason = staticmethod(unavailable_reason)

    def device_type(self) -> str:
        return "cpu"

    def forward(self, plan: Plan, layout: Layout, given: Operands) -> list[Tensor]:
        inputs, states, params = given
        x, count = inputs[0], 1 + len(plan.record)
        is_plain = layout.in_order and all(map(Tensor.is_contiguous, (*inputs, *states)))
        if is_plain and x.nbytes < LARGE:  # allocated without a further call
            new = [*map(torch.empty_like, (*repeat(x, count), *states))]
        else:
            new = layout.allocate(x, plan.program.dtype, sequences=count, steps=len(states))
        output, records, ends = new[0], new[1:count], new[count:]
        # Large outputs are written past the caches, by kernels that write long runs: others were
        # twice as slow with it in one process of ten, and faster by a fifth in the rest.
        bypass = (
            output.nbytes >= cache_size() // 8
            and _is_short(plan)
            and _are_aligned(new[:count], _grid(layout, grouped=False))
        )
        call = _forward_of(plan, layout, len(x), bypass)
        grid, kernel = call.grid, call.kernel
        checkpoints = torch.empty(call.kept, dtype=plan.program.dtype)
        results = [output, *ends, *records, checkpoints]
        if layout.lanes == 0:
            return results
        plain = zip(inputs, repeat(layout.lanes), repeat(grid.columns), strict=False)
        buffers: dict[Role, Sequence[Any]] = {
            Role.INPUT: list(plain) if is_plain else _sequences(inputs, layout, grid),
            Role.PARAMETER: list(map(Tensor.contiguous, params)),
            Role.START: states if is_plain else _flat(states, layout),
            Role.OUTPUT: (output,),
            Role.END: ends,
            Role.RECORD: records,
            Role.CHECKPOINTS: (checkpoints,),
        }
        kernel.run(grid.geometry, call.sizes, buffers, grid.tasks, call.work, call.scratch)
        return results

    def backward(
        self, plan: Plan, layout: Layout, given: Operands, checkpoints: Tensor, grads: list[Tensor]
    ) -> list[Tensor]:
        inputs, states, params = given
        program, x = plan.program, inputs[0]
        dtype, steps, last = program.dtype, x.shape[0], 1 + len(states)
        grid = _grid(layout, grouped=True)
        nothing = torch.empty(0, dtype=dtype)
        count = len(plan.differentiated)
        new = layout.allocate(x, dtype, sequences=count, steps=len(states))
        d_inputs, d_states = dict(zip(plan.differentiated, new, strict=False)), new[count:]
        # in float64: a parameter's gradient sums over time, batch and space
        sums = torch.zeros((grid.groups, len(plan.trained), grid.columns), dtype=torch.float64)
        if layout.lanes:
            kernel: CompiledKernel = plan.kernels.get((True, False)) or kernel_of(
                plan, True, schedules.backward_kernel
            )
            starts = dict(zip(program.states, states, strict=True))
            incoming = _sequences([grads[0], *grads[last:]], layout, grid)
            every = plan.checkpoint_interval
            # no longer than the sequence: scratch holds as many steps
            sizes = (steps, max(1, min(every, steps)), max(0, steps - 1) // every + 1)
            buffers: dict[Role, Sequence[Any]] = {
                Role.INPUT: _sequences(inputs, layout, grid),
                Role.PARAMETER: list(map(Tensor.contiguous, params)),
                Role.CHECKPOINTS: (checkpoints,),
                Role.START: _flat([starts[name] for name in plan.recomputed], layout),
                Role.GRAD_OUTPUT: incoming[:1],
                Role.GRAD_END: _flat(grads[1:last], layout),
                Role.GRAD_RECORD: incoming[1:],
                Role.GRAD_INPUT: new[:count],
                Role.GRAD_START: d_states,
                Role.SUMS: (sums,),
            }
            work = steps * layout.lanes * (4 + kernel.lines)
            scratch = kernel.scratch(sizes, grid.task_lanes)
            kernel.run(grid.geometry, sizes, buffers, grid.tasks, work, scratch)
        # Sum over groups, repeated rows and inner lanes; a value for the layer sums neurons too.
        d_params = dict.fromkeys(program.params, nothing)
        if plan.trained:
            shape = (grid.groups, len(plan.trained), grid.repeats, layout.neurons, layout.inner)
            with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
                totals = sums.numpy().reshape(shape).sum((0, 2, 4))
                d_params |= parameter_gradients(plan, params, totals)
        of_inputs = [d_inputs.get(name, nothing) for name in program.inputs]
        return [*of_inputs, *d_states, *d_params.values()]
