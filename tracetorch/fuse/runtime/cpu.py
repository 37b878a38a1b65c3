"""Run the time loops on the CPU: layout, memory and threads around the compiled kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen.llvm_kernel import Printed, print_kernel
from tracetorch.fuse.ir import schedule as schedules
from tracetorch.fuse.ir.kernel import PRIVATE, Role, Size, Value
from tracetorch.fuse.ir.kernel import Kernel as Schedule
from tracetorch.fuse.ir.plan import TILE, Plan
from tracetorch.fuse.ir.verify import verify
from tracetorch.fuse.runtime.backend import Backend, ResultGradients
from tracetorch.fuse.runtime.layout import Layout, allocate_results, strided
from tracetorch.fuse.runtime.machine_code import (
    TaskKernel,
    compiled,
    this_machine,
    unavailable_reason,
)
from tracetorch.fuse.runtime.memory import address, addresses
from tracetorch.fuse.runtime.threads import run_tasks

PlanT = TypeVar("PlanT", bound=Plan)

_CHUNK = 8  # steps of a tile that are computed before those of the next block of lanes
_SHORT = 16  # lines of a short step
_TASKS = 64  # at least: enough to share evenly among threads, few enough for their partial sums


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


@functools.lru_cache(maxsize=512)
def _grid(layout: Layout, *, grouped: bool) -> _Grid:
    """Divide the lanes of a layout into tasks; narrow rows share a tile.

    Args:
        layout: the layout.
        grouped: let a task do several rows, so that there are few partial sums; otherwise it does
            one, whose states it holds in a core's nearest cache.
    """
    width = layout.neurons * layout.inner
    # Narrow rows lie side by side in a tile, so that its vector operations have full width.
    repeats = max(1, min(TILE // max(1, width), layout.outer))
    columns = width * repeats
    rows = -(-layout.outer // repeats)
    tiles = -(-columns // TILE)
    per_group = max(1, tiles * rows // _TASKS) if grouped else 1
    groups = -(-rows // per_group)
    return _Grid(columns, rows, per_group, groups, tiles * groups, repeats)


class Kernel(NamedTuple):
    """A compiled kernel of a plan.

    Args:
        tasks: the kernel.
        schedule: what it was printed from.
        printed: what was compiled.
        literals: the numbers of the program, as the kernel reads them.
        lines: lines of arithmetic in one step.
    """

    tasks: TaskKernel
    schedule: Schedule
    printed: Printed
    literals: Tensor
    lines: int

    def arguments(
        self, geometry: Sequence[int], sizes: Sequence[int], buffers: Mapping[Role, Sequence[int]]
    ) -> list[int]:
        """Return its arguments in order.

        Args:
            geometry: as ``llvm_kernel.GEOMETRY`` names it.
            sizes: those of the kernel.
            buffers: for each role what its buffers take, one after the other.
        """
        arguments = [*geometry, *sizes]
        for role in self.schedule.roles:
            if role not in PRIVATE:
                arguments += buffers[role]
        return arguments

    def scratch(self, sizes: Sequence[int], lanes: int) -> tuple[int, ...]:
        """Return the bytes of scratch of a worker: none, or one number.

        Args:
            sizes: those of the kernel.
            lanes: of a task.
        """
        values = dict(zip(self.schedule.sizes, sizes, strict=True))
        if self.printed.block_scratch:
            lanes = self.printed.width
        total = scratch_values(self.schedule, values, lanes) * self.literals.itemsize
        return (total,) if total else ()


def scratch_values(kernel: Schedule, sizes: Mapping[Value, int], lanes: int) -> int:
    """Return how many values the scratch of a task has that holds some lanes at a time."""
    total = 0
    for buffer in kernel.buffers:
        if buffer.role in PRIVATE:
            count = lanes
            for extent in buffer.shape[:-1]:
                count *= sizes[extent.value] if isinstance(extent, Size) else cast(int, extent)
            total += count
    return total


def kernel_of(plan: PlanT, backward: bool, build: Callable[[PlanT], Schedule]) -> Kernel:
    """Return a kernel of a plan, printed and compiled at the first call.

    Args:
        plan: the plan.
        backward: which one of its two.
        build: schedules it.
    """
    kernel: Kernel | None = plan.kernels.get(backward)
    if kernel is None:
        schedule = verify(build(plan))
        printed = print_kernel(schedule, this_machine().processor)
        tasks = compiled(printed.text, printed.name)
        graph = plan.backward if backward else plan.program.forward
        literals = torch.tensor(plan.literals, dtype=plan.program.dtype, device="cpu")
        # the text is long, and has done its work
        printed = replace(printed, text="")
        kernel = Kernel(tasks, schedule, printed, literals, len(graph.lines))
        plan.kernels[backward] = kernel
    return kernel


def _forward_kernel(plan: Plan) -> Schedule:
    return schedules.forward_kernel(plan, in_chunks=True)


def _geometry(layout: Layout, grid: _Grid) -> tuple[int, ...]:
    """Return the integers that describe the lanes of a call."""
    rows = (grid.columns, layout.lanes, grid.rows, grid.per_group)
    return (*rows, TILE, layout.neurons, layout.inner)


def _join(*parts: Sequence[int]) -> list[int]:
    """Return the first of each part, the second of each, and so on."""
    return [number for group in zip(*parts, strict=True) for number in group]


def _flat(tensors: Iterable[Tensor], layout: Layout) -> list[Tensor]:
    """Return sequences or steps whose memory is in the order of the layout, without gaps."""
    if not layout.in_order:
        tensors = map(layout.arrange, tensors)
    return list(map(Tensor.contiguous, tensors))


def _sequence(tensor: Tensor, layout: Layout, grid: _Grid) -> tuple[int, int, Tensor]:
    """Return the strides of time and of the grid's rows, and the flat memory, of a sequence."""
    flat, step, row = strided(tensor, layout)
    if grid.repeats > 1 and row != layout.neurons * layout.inner:
        # Rows of a grid are several rows of the layout: they must follow each other without gaps.
        flat, step, row = strided(layout.restore(layout.arrange(tensor).contiguous()), layout)
    return step, row * grid.repeats, flat


def _sequences(
    tensors: Sequence[Tensor], layout: Layout, grid: _Grid, dtype: torch.dtype
) -> tuple[list[int], list[Tensor]]:
    """Return address and strides of time and rows of each sequence, and their flat memory."""
    numbers: list[int] = []
    flat: list[Tensor] = []
    for tensor in tensors:
        if layout.in_order and tensor.is_contiguous():
            step, row, memory = layout.lanes, grid.columns, tensor
        else:
            step, row, memory = _sequence(tensor, layout, grid)
        numbers += (address(memory, dtype), step, row)
        flat.append(memory)
    return numbers, flat


def parameters_of(params: Sequence[Tensor], dtype: torch.dtype) -> list[int]:
    """Return address and number of values of each parameter."""
    return _join(addresses(params, dtype), list(map(Tensor.numel, params)))


def parameter_gradients(plan: Plan, params: Sequence[Tensor], totals: Any) -> dict[str, Tensor]:
    """Return the gradients by name from their sums ``[trained, neurons]``."""
    program, neurons = plan.program, totals.shape[1]
    gradients: dict[str, Tensor] = {}
    for name, total in zip(plan.trained, totals, strict=True):
        like = params[program.params.index(name)]
        value = total if like.numel() != 1 or neurons == 1 else total.sum()
        gradients[name] = torch.as_tensor(value, dtype=program.dtype).reshape(like.shape)
    return gradients


class NumbaBackend(Backend):
    """Kernels for the CPU."""

    name = "numba"
    tile = TILE

    def device_type(self) -> str:
        """Return ``"cpu"``."""
        return "cpu"

    def uninstalled_reason(self) -> str | None:
        """Return why nothing can be compiled on this machine, or ``None``."""
        return unavailable_reason()

    def forward(
        self,
        plan: Plan,
        layout: Layout,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor],
        params: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run the forward kernel: as :meth:`.Backend.forward`."""
        x = inputs[0]
        steps = x.shape[0]
        output, ends, records, checkpoints = allocate_results(plan, layout, x)
        results = [output, *ends, *records, checkpoints]
        if layout.lanes == 0:
            return results
        grid = _grid(layout, grouped=False)
        kernel: Kernel = plan.kernels.get(False) or kernel_of(plan, False, _forward_kernel)
        dtype = plan.program.dtype
        given, kept = _sequences(inputs, layout, grid, dtype)
        params = list(map(Tensor.contiguous, params))
        starts = _flat(states, layout)
        # Without checkpoints the whole sequence is one segment.
        count = plan.checkpoints(steps)
        every = plan.checkpoint_interval if count else steps
        # Of a short step memory is the limit, which likes long runs of lanes; a long one likes to
        # keep its states and parameters in registers.
        chunk = max(1, min(_CHUNK, every) if kernel.lines <= _SHORT else every)
        sizes = (steps, every, count + 1, chunk, -(-every // chunk))
        buffers = {
            Role.INPUT: given,
            Role.PARAMETER: parameters_of(params, dtype),
            Role.LITERALS: addresses((kernel.literals,), dtype),
            Role.START: addresses(starts, dtype),
            Role.OUTPUT: addresses((output,), dtype),
            Role.END: addresses(ends, dtype),
            Role.RECORD: addresses(records, dtype),
            Role.CHECKPOINTS: addresses((checkpoints,), dtype),
        }
        arguments = kernel.arguments(_geometry(layout, grid), sizes, buffers)
        work = steps * layout.lanes * (4 + kernel.lines)
        scratch = kernel.scratch(sizes, grid.per_group * TILE)
        run_tasks(kernel.tasks, arguments, grid.tasks, work=work, scratch=scratch)
        del kept  # alive until here
        return results

    def run_backward(
        self,
        plan: Plan,
        layout: Layout,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor],
        params: Sequence[Tensor],
        checkpoints: Tensor,
        grads: ResultGradients,
    ) -> list[Tensor]:
        """Run the backward kernel: as :meth:`.Backend.run_backward`."""
        program, x = plan.program, inputs[0]
        dtype, steps = program.dtype, x.shape[0]
        grid = _grid(layout, grouped=True)
        nothing = torch.empty(0, dtype=dtype)
        count = len(plan.differentiated)
        new = layout.allocate(x, dtype, sequences=count, steps=len(states))
        d_inputs, d_states = dict(zip(plan.differentiated, new, strict=False)), new[count:]
        # in float64: a parameter's gradient sums over time, batch and space
        sums = torch.zeros((grid.groups, len(plan.trained), grid.columns), dtype=torch.float64)
        if layout.lanes:
            kernel: Kernel = plan.kernels.get(True) or kernel_of(
                plan, True, schedules.backward_kernel
            )
            starts = dict(zip(program.states, states, strict=True))
            params = list(map(Tensor.contiguous, params))
            given, kept = _sequences(inputs, layout, grid, dtype)
            incoming, kept_grads = _sequences(
                [grads.output, *grads.trajectories], layout, grid, dtype
            )
            before = _flat([starts[name] for name in plan.recomputed], layout)
            after = _flat(grads.ends, layout)
            every = plan.checkpoint_interval
            # no longer than the sequence: scratch holds as many steps
            sizes = (steps, max(1, min(every, steps)), max(0, steps - 1) // every + 1)
            buffers = {
                Role.INPUT: given,
                Role.PARAMETER: parameters_of(params, dtype),
                Role.LITERALS: addresses((kernel.literals,), dtype),
                Role.CHECKPOINTS: addresses((checkpoints,), dtype),
                Role.START: addresses(before, dtype),
                Role.GRAD_OUTPUT: incoming[:3],
                Role.GRAD_END: addresses(after, dtype),
                Role.GRAD_RECORD: incoming[3:],
                Role.GRAD_INPUT: addresses(new[:count], dtype),
                Role.GRAD_START: addresses(d_states, dtype),
                Role.SUMS: [sums.data_ptr()],
            }
            arguments = kernel.arguments(_geometry(layout, grid), sizes, buffers)
            work = steps * layout.lanes * (4 + kernel.lines)
            scratch = kernel.scratch(sizes, grid.per_group * TILE)
            run_tasks(kernel.tasks, arguments, grid.tasks, work=work, scratch=scratch)
            del kept, kept_grads  # alive until here
        # Sum over groups, repeated rows and inner lanes; a value for the layer sums neurons too.
        d_params = dict.fromkeys(program.params, nothing)
        shape = (grid.groups, len(plan.trained), grid.repeats, layout.neurons, layout.inner)
        with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
            totals = sums.numpy().reshape(shape).sum((0, 2, 4))
            d_params |= parameter_gradients(plan, params, totals)
        of_inputs = [d_inputs.get(name, nothing) for name in program.inputs]
        return [*of_inputs, *d_states, *d_params.values()]
