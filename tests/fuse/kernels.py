"""Run kernels on arrays: by the evaluator, and compiled for this machine or a lesser one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuse.evaluate import evaluate
from tests.fuse.verify import verify
from tracetorch.fuse.codegen.llvm_kernel import ALIGNMENT, print_kernel
from tracetorch.fuse.codegen.llvm_tasks import LINE
from tracetorch.fuse.dispatch.recurrence import _panels
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import (
    PRIVATE,
    Axis,
    Dtype,
    Extent,
    KernelBuilder,
    Role,
    Schedule,
    Size,
    written,
)
from tracetorch.fuse.ir.plan import TILE
from tracetorch.fuse.runtime import machine_code
from tracetorch.fuse.runtime.cpu import own_buffers, scratch_values
from tracetorch.fuse.runtime.machine_code import Machine, this_machine

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38]


def lesser_machine() -> Machine:
    """Return the least processor that this machine can stand in for."""
    triple = this_machine().triple
    cpu = "x86-64" if triple.startswith("x86_64") else "generic"
    return Machine(triple, cpu, "")


def kernel_of_graph(graph: Graph, dtype: torch.dtype) -> Schedule:
    """Return a kernel that computes a graph once, in each lane: memory for each name."""
    k = KernelBuilder("run", "a graph", Dtype(str(dtype).removeprefix("torch.")))
    sources = {name: k.buffer(Role.START, name, (Extent.LANES,)) for name in sorted(graph.reads())}
    literals = list(graph.literals().values())
    numbers = k.buffer(Role.LITERALS, "", (max(1, len(literals)),))
    targets = {name: k.buffer(Role.END, name, (Extent.LANES,)) for name in graph.outputs}
    with k.lanes():
        env: dict[Any, Any] = {}
        for name, buffer in sources.items():
            env[name] = k.load(buffer, (Axis.LANE,), name)
        for i, number in enumerate(literals):
            env[number.hex()] = k.load(numbers, (i,), "c")

        def operand(value: Any) -> Any:
            if isinstance(value, str):
                return env[value]
            return value if isinstance(value, bool) else env[value.hex()]

        for line in graph.lines:
            env[line.name] = k.op(line.op, *map(operand, line.args))
        for name, value in graph.outputs.items():
            k.store(targets[name], (Axis.LANE,), operand(value))
    return verify(k.kernel())


def run_compiled(
    kernel: Schedule,
    sizes: Mapping[str, int],
    buffers: Mapping[str, Any],
    lanes: int,
    machine: Machine | None = None,
    *,
    neurons: int | None = None,
    serial: bool = False,
    bypass: bool = False,
) -> None:
    """Run a kernel on arrays by label, compiled for a machine; its scratch is full of NaN.

    ``neurons`` are the lanes of a row in a linear recurrence. Where it writes past the caches,
    ``bypass``, the arrays must be aligned.
    """
    machine = machine or this_machine()
    printed = print_kernel(kernel, machine.processor, serial=serial, bypass=bypass)
    loaded = _loaded(printed.text, printed.name, machine)
    buffers = dict(buffers)
    if "matrix" in buffers:
        buffers["matrix"] = _panels(torch.from_numpy(buffers["matrix"]), printed.panel).numpy()
    columns, rows, per_group = neurons or lanes, lanes // (neurons or lanes), 2
    tile = columns if neurons or serial else TILE
    per_row = len(next((b for n, b in buffers.items() if n.startswith("parameter")), [lanes]))
    known: dict[str, int] = {"columns": columns, "lanes": lanes, "rows": rows, **sizes}
    known |= {"per_group": rows if serial else per_group, "tile": tile, "inner": 1}
    known["neurons"] = neurons or max(1, per_row)
    for name, memory in buffers.items():
        known[name] = memory.ctypes.data
        known |= {f"{name}.step": lanes, f"{name}.row": columns, f"{name}.size": len(memory)}
    numbers = [known[name] for name in printed.arguments]
    values = [known[size.name] for size in kernel.sizes]
    count = scratch_values(own_buffers(kernel), values, per_group * tile)
    scratch = np.full(count, np.nan, kernel.dtype.value)
    if len(scratch):
        numbers += (scratch.ctypes.data, scratch.nbytes)
    tasks = -(-columns // tile) * -(-rows // per_group)
    block = array("q", [tasks, 1, 0, 0, *numbers])
    block.frombytes(bytes(8 * (-len(block) % LINE + LINE)))
    loaded.run(block.buffer_info()[0])


@lru_cache(maxsize=64)
def _loaded(text: str, name: str, machine: Machine) -> machine_code.TaskKernel:
    """Compile a kernel once for all the sizes that it is run with."""
    return machine_code._load(machine_code.object_code(text, machine), name)


def aligned(array: Any) -> Any:
    """Return a copy that begins with a cache line."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def buffers_of(
    kernel: Schedule, sizes: Mapping[str, int], lanes: int, neurons: int, draw: Callable[..., Any]
) -> dict[str, Any]:
    """Return arrays for a kernel: drawn where it reads them, full of NaN where it writes."""
    extents = {Extent.LANES: lanes, Extent.NEURONS: neurons}
    stored = written(kernel)
    found: dict[str, Any] = {}
    for buffer in kernel.buffers:
        shape: list[int] = []
        for extent in buffer.shape:
            if isinstance(extent, Size):
                shape.append(sizes[extent.value.name] + extent.plus)
            else:
                shape.append(extents[extent] if isinstance(extent, Extent) else extent)
        if buffer.role in PRIVATE:
            continue
        if buffer.role is Role.SUMS:
            found[buffer.label] = np.zeros(shape)
        elif buffer not in stored:
            found[buffer.label] = np.ascontiguousarray(draw(shape).astype(buffer.dtype.value))
        else:
            found[buffer.label] = np.full(shape, np.nan, buffer.dtype.value)
    return found


def evaluated(
    kernel: Schedule, lanes: int, neurons: int, *, special: bool = True, taps: int = 1
) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Return sizes, arrays for a kernel, and what the evaluator makes of copies of them."""
    random = np.random.default_rng(lanes)
    known = {"steps": 7, "every": 3, "segments": 3, "chunk": 2, "chunks": 2, "taps": taps}
    sizes = {size.name: known[size.name] for size in verify(kernel).sizes}

    def draw(shape: list[int]) -> Any:
        values = random.uniform(-1, 1, shape)
        where = random.random(shape) < (0.1 if special else 0.0)
        return np.where(where, random.choice(SPECIAL, shape), values)

    given = buffers_of(kernel, sizes, lanes, neurons, draw)
    expected = {name: memory.copy() for name, memory in given.items()}
    evaluate(kernel, sizes, expected, neurons=np.arange(lanes) % neurons)
    return sizes, given, expected


def graph_on(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    dtype: torch.dtype,
    machine: Machine | None = None,
    *,
    evaluated: bool = False,
) -> dict[str, Tensor]:
    """Return the outputs of a graph by name, in each lane of its inputs."""
    kernel = kernel_of_graph(graph, dtype)
    lanes = len(next(iter(inputs.values())))
    real = np.dtype(str(dtype).removeprefix("torch."))
    buffers = {f"start_{name}": inputs[name].numpy() for name in graph.reads()}
    buffers["literals"] = np.array(list(graph.literals().values()) or [0.0], real)
    buffers |= {f"end_{name}": np.full(lanes, np.nan, real) for name in graph.outputs}
    if evaluated:
        evaluate(kernel, {}, buffers, neurons=np.arange(lanes))
    else:
        run_compiled(kernel, {}, buffers, lanes, machine, serial=True)
    return {name: torch.from_numpy(buffers[f"end_{name}"]) for name in graph.outputs}
