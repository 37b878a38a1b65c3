"""Run the printed time loops of a linear recurrence on a GPU: one launch for all of time.

A program walks a few rows through all steps, so that no two of them wait for each other. Under
``TRITON_INTERPRET=1`` they run on tensors of the CPU, slowly, to be tested.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.fuse.codegen.triton_loops import exact_options
from tracetorch.fuse.codegen.triton_recurrence import recurrence_source
from tracetorch.fuse.ir.kernel import STRIDED, Role, Schedule
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime.allocation import wrong_memory
from tracetorch.fuse.runtime.gpu import launch_programs, literals
from tracetorch.fuse.runtime.kernel_cache import module_of
from tracetorch.fuse.runtime.recurrence import Buffers, Loop, Shape

LARGEST = 256  # neurons whose states and sums fit into the registers of a program
_MOST_ROWS = 16  # of a program: enough to read the matrix seldom
_DEPTH = 16  # rows of the matrix that are multiplied at a time, the fewest that Triton takes
_MOST_WARPS = 8  # with up to 255 registers for a thread
_MOST_LANES = 4  # of a thread
_VALUES = 8  # of float32 that a thread has in registers for each of its lanes, if they are so many


class Tile(NamedTuple):
    """The block of a program, in the names of its kernel's arguments, and its warps."""

    ROWS: int
    COLUMNS: int
    DEPTH: int
    num_warps: int
    num_stages: int = 2  # parts of the matrix on their way: a third one takes registers


def tile_of(plan: RecurrentPlan, rows: int, neurons: int, processors: int) -> Tile:
    """Return the block for so many rows.

    It has no more lanes than registers hold, and no more rows than leave a program for each
    processor: the time of a step grows with the rows of a program.
    """
    columns = max(_DEPTH, _power(neurons))
    program = plan.program
    # parameters and the sums of their gradients, states and their cotangents
    values = 2 * (len(program.params) + len(program.states))
    if program.dtype is torch.float64:
        values *= 4  # of two registers, and so are what is computed from them
    lanes = max(1, _MOST_LANES * _VALUES // max(_VALUES, _power(values)))
    most = max(1, 32 * _MOST_WARPS * lanes // columns)
    count = min(_MOST_ROWS, most, _power(-(-rows // processors)))
    threads = max(count * columns // lanes, min(128, count * columns), 32)
    return Tile(count, columns, _DEPTH, min(_MOST_WARPS, threads // 32))


def _power(number: int) -> int:
    """Return the smallest power of two that is not less than a number."""
    return 1 << (number - 1).bit_length()


def recurrence_options(backend: str) -> dict[str, Any]:
    """Return the options of a launch: all registers for a thread, contraction in products alone."""
    return exact_options(backend) | ({"maxnreg": 255} if backend == "cuda" else {})


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


class TritonLoop(Loop):
    """Those in Triton, a program for up to sixteen rows."""

    @staticmethod
    def unsupported_reason(neurons: int) -> str | None:
        """Return why so many neurons run step by step, or ``None``."""
        if neurons <= LARGEST:
            return None
        return f"one kernel for all steps takes up to {LARGEST} neurons, it has {neurons}"

    def variant(self, like: Tensor, taps: int) -> tuple[Any, ...]:
        """Return the block, and what Triton looks at in numbers."""
        shape = self.shape(like, taps)
        tile = tile_of(self.plan, shape.rows, shape.neurons, _processors(like.device))
        return taps > 1, shape.neurons, shape.lanes % 16, tile

    def interval(self, rows: int, neurons: int) -> int:
        """Return that of the layers that are not recurrent."""
        return self.plan.checkpoint_interval

    def sums(self, shape: Shape, like: Tensor) -> Tensor:
        """Return those of each lane, which take no atomics."""
        size = (len(self.plan.trained), shape.rows, shape.neurons)
        return like.new_zeros(size, dtype=torch.float64)

    def totals(self, sums: Tensor) -> Any:
        """Return the sums over rows."""
        return sums.sum(1)

    def run(self, backward: bool, shape: Shape, matrices: Tensor, buffers: Buffers) -> None:
        """Launch a kernel."""
        device, plan = matrices.device, self.plan
        schedule, kernel = self._kernel(backward, shape.taps == 1)
        past = shape.every * max(1, len(plan.recomputed)) * shape.lanes if backward else 0
        buffers = buffers | {
            Role.LITERALS: (literals(plan.literals, plan.program.dtype, device),),
            Role.MATRIX: (matrices.contiguous(),),
            Role.PAST: (matrices.new_empty(past),),
        }
        arguments = _arguments(schedule, shape, buffers)
        tile = tile_of(plan, shape.rows, shape.neurons, _processors(device))
        count = -(-shape.rows // tile.ROWS)
        arguments |= tile._asdict()
        launch_programs(kernel, count, device, arguments, recurrence_options)

    def _kernel(self, backward: bool, one_matrix: bool) -> tuple[Schedule, Any]:
        key = ("recurrence", backward, one_matrix)
        if key not in self.plan.kernels:
            build = recurrent_backward_kernel if backward else recurrent_forward_kernel
            schedule = build(self.plan)
            source = recurrence_source(schedule, one_matrix=one_matrix)
            name = f"triton_recurrent_{schedule.name}"
            self.plan.kernels[key] = schedule, getattr(module_of(source, name), schedule.name)
        found: tuple[Schedule, Any] = self.plan.kernels[key]
        return found


def _arguments(kernel: Schedule, shape: Shape, buffers: Buffers) -> dict[str, Any]:
    """Return the arguments by name; refuse tensors of another dtype than the kernel reads."""
    sizes = zip([size.name for size in kernel.sizes], shape.sizes, strict=True)
    found: dict[str, Any] = {
        "lanes": shape.lanes,
        "width": shape.neurons,
        "inner": 1,
        **dict(sizes),
    }
    given = {role: iter(each) for role, each in buffers.items()}
    for buffer in kernel.buffers:
        if buffer.role is Role.SCRATCH:
            continue
        each, label = next(given[buffer.role]), buffer.label
        tensor = each[0] if buffer.role in STRIDED else each
        if str(tensor.dtype) != f"torch.{buffer.dtype.value}":
            raise wrong_memory(tensor, getattr(torch, buffer.dtype.value), tensor.device)
        found[f"at_{label}"] = tensor.detach().view(-1)
        if buffer.role in STRIDED:
            found |= {f"step_{label}": each[1], f"row_{label}": each[2]}
        elif buffer.role is Role.PARAMETER:
            found[f"stride_{label}"] = int(tensor.numel() > 1)
    return found
