"""Run the printed time loops on the CPU: layout, memory and threads around the Numba kernels."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

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
from tracetorch.fuse.runtime.backend import Backend, ResultGradients
from tracetorch.fuse.runtime.kernel_cache import TaskKernel, compiled_tasks
from tracetorch.fuse.runtime.layout import Layout, allocate_results, strided
from tracetorch.fuse.runtime.memory import addresses
from tracetorch.fuse.runtime.threads import run_tasks

PlanT = TypeVar("PlanT", bound=Plan)

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


@functools.lru_cache(maxsize=512)
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


class Kernel(NamedTuple):
    """A compiled kernel of a plan.

    Args:
        tasks: the kernel.
        slots: widths of a tile that it needs as scratch.
        literals: the numbers of the program, as the kernel reads them.
        lines: lines of arithmetic in one step.
    """

    tasks: TaskKernel
    slots: int
    literals: Tensor
    lines: int


class Built(NamedTuple):
    """A printed kernel.

    Args:
        source: its module.
        slots: widths of a tile that it needs as scratch.
        signature: Numba's types of its arguments.
        scratch: how many of the last arguments are scratch.
    """

    source: str
    slots: int
    signature: Any
    scratch: int


def kernel_of(plan: PlanT, backward: bool, build: Callable[[PlanT, bool], Built]) -> Kernel:
    """Return a kernel of a plan, printed by ``build`` and compiled at the first call.

    Args:
        plan: the plan.
        backward: which one of its two.
        build: prints it.
    """
    kernel: Kernel | None = plan.kernels.get(backward)
    if kernel is None:
        built = build(plan, backward)
        name = "backward" if backward else "forward"
        tasks = compiled_tasks(built.source, name, built.signature, built.scratch)
        graph = plan.backward if backward else plan.program.forward
        literals = torch.tensor(plan.literals, dtype=plan.program.dtype, device="cpu")
        kernel = plan.kernels[backward] = Kernel(tasks, built.slots, literals, len(graph.lines))
    return kernel


def _build(plan: Plan, backward: bool) -> Built:
    source, slots = backward_source(plan) if backward else forward_source(plan)
    integers, arrays = backward_arguments(plan) if backward else forward_arguments(plan)
    return Built(source, slots, signature(integers, arrays, plan), 2 if backward else 1)


def signature(integers: Sequence[str], arrays: Sequence[str], plan: Plan) -> Any:
    """Return Numba's types of a kernel's arguments, the range of tasks first."""
    from numba import types

    real = getattr(types, real_name(plan.program.dtype))
    values = [(types.float64 if name == "sums" else real)[::1] for name in arrays]
    return types.void(types.int64, types.int64, *[types.int64] * len(integers), *values)


def _sizes(layout: Layout, grid: _Grid, steps: int, every: int) -> tuple[int, ...]:
    """Return the integers that both kernels take first."""
    rows = (grid.columns, layout.lanes, grid.rows, grid.per_group)
    return steps, every, *rows, layout.neurons, layout.inner


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
    tensors: Sequence[Tensor], layout: Layout, grid: _Grid
) -> tuple[list[int], list[Tensor]]:
    """Return the strides of several sequences one after the other, and their flat memory."""
    strides: list[int] = []
    flat: list[Tensor] = []
    for tensor in tensors:
        if layout.in_order and tensor.is_contiguous():
            step, row, memory = layout.lanes, grid.columns, tensor
        else:
            step, row, memory = _sequence(tensor, layout, grid)
        strides += (step, row)
        flat.append(memory)
    return strides, flat


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
        """Return why Numba cannot compile on this machine, or ``None``."""
        return _uninstalled_reason()

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
        grid, kernel = _grid(layout), plan.kernels.get(False) or kernel_of(plan, False, _build)
        strides, flat = _sequences(inputs, layout, grid)
        params = list(map(Tensor.contiguous, params))
        # Without checkpoints the whole sequence is one segment.
        every = plan.checkpoint_interval if len(checkpoints) else steps
        tensors = [*flat, *params, kernel.literals, output, *_flat(states, layout)]
        tensors += [*ends, *records, checkpoints]
        # In the order of numba_loops.forward_arguments.
        arguments = (
            *_sizes(layout, grid, steps, every),
            *(*strides, *map(Tensor.numel, params)),
            *addresses(tensors, plan.program.dtype),
        )
        work = steps * layout.lanes * (4 + kernel.lines)
        tile = TILE * x.itemsize
        scratch = (kernel.slots * tile,)
        run_tasks(kernel.tasks, arguments, grid.tasks, work=work, scratch=scratch)
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
        grid = _grid(layout)
        nothing = torch.empty(0, dtype=dtype)
        count = len(plan.differentiated)
        new = layout.allocate(x, dtype, sequences=count, steps=len(states))
        d_inputs, d_states = dict(zip(plan.differentiated, new, strict=False)), new[count:]
        # in float64: a parameter's gradient sums over time, batch and space
        sums = torch.zeros((grid.groups, len(plan.trained), grid.columns), dtype=torch.float64)
        if layout.lanes:
            kernel: Kernel = plan.kernels.get(True) or kernel_of(plan, True, _build)
            starts = dict(zip(program.states, states, strict=True))
            params = list(map(Tensor.contiguous, params))
            strides, flat = _sequences(inputs, layout, grid)
            g_strides, (g_flat, *h_flat) = _sequences(
                [grads.output, *grads.trajectories], layout, grid
            )
            tensors = [*flat, *params, kernel.literals, checkpoints]
            tensors += [*_flat([starts[name] for name in plan.recomputed], layout), g_flat]
            tensors += [*_flat(grads.ends, layout), *h_flat, *new]
            # In the order of numba_loops.backward_arguments.
            arguments = [
                *_sizes(layout, grid, steps, plan.checkpoint_interval),
                *(*strides, *map(Tensor.numel, params), *g_strides),
                *addresses(tensors, dtype),
                sums.data_ptr(),
            ]
            # Scratch for the states of one segment, recomputed from its checkpoint.
            past = max(1, len(plan.recomputed)) * min(plan.checkpoint_interval, steps)
            tile = TILE * x.itemsize
            work = steps * layout.lanes * (4 + kernel.lines)
            scratch = (kernel.slots * tile, past * tile)
            run_tasks(kernel.tasks, arguments, grid.tasks, work=work, scratch=scratch)
        # Sum over groups, repeated rows and inner lanes; a value for the layer sums neurons too.
        d_params = dict.fromkeys(program.params, nothing)
        shape = (grid.groups, len(plan.trained), grid.repeats, layout.neurons, layout.inner)
        with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
            totals = sums.numpy().reshape(shape).sum((0, 2, 4))
            d_params |= parameter_gradients(plan, params, totals)
        of_inputs = [d_inputs.get(name, nothing) for name in program.inputs]
        return [*of_inputs, *d_states, *d_params.values()]


@functools.cache
def _uninstalled_reason() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed; pip install numba"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        import numba  # noqa: F401
    except Exception as failure:  # a NumPy it does not know, a broken library
        return f"Numba cannot be imported: {failure}"
    return None
