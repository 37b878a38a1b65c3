"""``CompiledStep``: a layer's step without a graph, a kernel on memory at given addresses."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracetorch.cell import Cell, StepLayer
from tracetorch.fuse.codegen.llvm_kernel import print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import step_kernel
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime.machine_code import compiled, this_machine

MOST_LANES = 1 << 15  # for more, PyTorch's own threads are as fast
# by size, to see a tensor's bytes at any stride
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
class CompiledStep:
    """The kernel of a program for inputs like ``x``, which runs in one thread."""

    _kernel: Callable[[int, int, list[int]], None]

    def __init__(self, cell: Cell, program: Program, x: Tensor) -> None:
        self._cell, self._program, self._ndim, self._dtype = cell, program, x.ndim, x.dtype
        # name, address, size, bytes and a view of every raw parameter when it was last constrained
        self._raw_values: list[tuple[str, int, int, bytes, Any]] = []
        dim, states = cell.dim_from_end(x.ndim), len(program.states)
        plan = Plan(program, "cpu", dim, (), False, (), ())
        inner = math.prod(x.shape[x.ndim + dim + 1 :])
        columns, real = cell.num_neurons * inner, str(x.dtype).removeprefix("torch.")
        rows, count = x.numel() // columns, len(program.params)
        # a row of parameters of each lane, and the literals: read at each step, so kept alive
        self._packed = np.zeros((max(1, count), cell.num_neurons, inner), real)
        self._literals = np.array(plan.literals or (0.0,), real)
        printed = print_kernel(step_kernel(plan), this_machine().processor, serial=True)
        run = compiled(printed.text, printed.name).run
        # in the order of llvm_kernel.GEOMETRY: one task, of all lanes
        fixed = [0] * HEADER + [columns, rows * columns, rows, rows, columns, columns, 1]
        for place in self._packed[:count]:
            fixed += (place.ctypes.data, columns)
        first = struct.pack(f"={len(fixed) + 1}q", *fixed, self._literals.ctypes.data)
        pack = struct.Struct(f"={2 + 2 * states}q").pack
        # ctypes passes the address of the bytes, and keeps them
        self._kernel = lambda x, output, states: run(first + pack(x, output, *states))

    def run(
        self, layer: StepLayer, x: Tensor, starts: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output and the next states by name."""
        for place, state in enumerate(starts):
            if state.is_neg() or not state.is_contiguous():
                starts[place] = state.resolve_neg().contiguous()
        if not self._has_parameters_of(layer.__dict__):
            self._constrain_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends = {name: torch.empty_like(x) for name in self._cell.active}
        addresses = [*map(Tensor.data_ptr, starts), *map(Tensor.data_ptr, ends.values())]
        self._kernel(x.data_ptr(), output.data_ptr(), addresses)
        return output, ends

    def _has_parameters_of(self, attributes: dict[str, Any]) -> bool:
        """Whether raw values are the same: a fused optimizer, or ``.data``, leaves no trace."""
        parameters: dict[str, Any] = attributes["_parameters"]
        for name, address, size, content, view in self._raw_values:
            raw = parameters.get(name)
            if raw is None:
                raw = attributes["_buffers"].get(name)
            if (
                raw is None
                or raw.data_ptr() != address
                or raw.numel() != size
                or not raw.is_contiguous()
                or view.tobytes() != content
            ):
                return False
        return len(self._raw_values) == len(self._cell.constraints)

    def _constrain_parameters(self, layer: StepLayer) -> None:
        """Constrain the parameters, and note the raw values that they follow from."""
        kwargs = layer.step_kwargs(self._ndim, self._dtype)
        for place, value in zip(self._packed, self._program.tensors(kwargs), strict=False):
            # not .numpy(): FSDP could not free the memory between two passes
            place[...] = np.from_dlpack(value.detach()).reshape(-1, 1)
        raw_values: list[tuple[str, int, int, bytes, Any]] = []
        for name in self._cell.raw_names:
            # the copy of a negative view has another address: it is constrained at every step
            raw = getattr(layer, name).detach().resolve_neg()
            # DLPack keeps the memory, so that the address stays its own. As integers, because NumPy
            # has no bfloat16.
            view = np.from_dlpack(raw.view(_INTEGERS[raw.element_size()]))
            raw_values.append((name, raw.data_ptr(), raw.numel(), view.tobytes(), view))
        self._raw_values = raw_values
