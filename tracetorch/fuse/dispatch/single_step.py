"""Run one step without a graph: the compiled step that ``layer(x)`` runs under ``no_grad``.

What a step costs here is not arithmetic but the calls around it. So everything that can be computed
once is, for one shape of input; each call then checks that nothing has changed, allocates what it
returns, and makes one call by address.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.cell import Cell, StepLayer
from tracetorch.core.torch_private import functorch
from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.dispatch.backends import requested_backend, unavailable_reason
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.cpu import CpuBackend
from tracetorch.fuse.runtime.memory import write_parameters
from tracetorch.fuse.runtime.single_step import compiled_step

_MOST_LANES = 1 << 15  # for more, PyTorch's own threads are as fast
# by size, to see a tensor's bytes at any stride
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CompiledStep:
    """A layer's step, compiled for one shape and dtype of input: a preparation of the layer.

    Args:
        layer: whose step.
        cell: what it is.
        x: an input.

    """

    def __init__(self, layer: StepLayer, cell: Cell, x: Tensor) -> None:
        self.cell, self.shape, self.dtype, self.device = cell, x.shape, x.dtype, x.device
        self.requested, self.default_dtype = requested_backend(), torch.get_default_dtype()
        self.states, self.raw_names = cell.active, cell.raw_names
        self.params: tuple[str, ...] = ()
        # name, address, size, bytes and a view of every raw parameter when it was last constrained
        self.raw_values: tuple[tuple[str, int, int, bytes, Any], ...] = ()
        plan = self._plan(layer, cell, x)
        self.kernel: Callable[[int, int, list[int]], None] | None = None
        if plan is not None:
            self.params = plan.program.params
            self.inner = math.prod(x.shape[x.ndim + plan.dim + 1 :])
            columns = cell.num_neurons * self.inner
            real = np.dtype(real_name(self.dtype)).type
            self.literals = np.array(plan.literals or (0.0,), real)
            self.packed = np.zeros(max(1, len(self.params)) * columns, real)
            rows = x.numel() // columns
            self.kernel = compiled_step(plan, rows, columns, self.packed, self.literals)

    def _plan(self, layer: StepLayer, cell: Cell, x: Tensor) -> Plan | None:
        if (
            not 0 < x.numel() <= _MOST_LANES
            or x.dtype not in (torch.float32, torch.float64)
            or cell.runs_by_step
            or not cell.has_plain_states
            or self.requested not in ("auto", "cpu")
            or not cell.is_comparable
            or unavailable_reason("cpu", x.device) is not None
        ):
            return None
        try:
            kwargs = layer.step_kwargs(x.ndim, x.dtype)
            program = program_of(cell, x.ndim, layer.check_input(x), kwargs)
        except Unfusable:
            return None
        return Plan(
            program,
            backend=CpuBackend.name,
            dim=cell.dim_from_end(x.ndim),
            record=(),
            has_backward=False,
            differentiated=(),
            trained=(),
        )

    def run(
        self, layer: StepLayer, x: Tensor, states: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the output, and next states by name; ``None`` where the eager step must run."""
        if self.kernel is None or not x.is_contiguous():
            return None
        starts: list[Tensor] = []  # which keeps alive what the kernel reads
        addresses: list[int] = []
        for name in self.states:
            state = states[name]
            if state is None:
                if name in self.cell.starts:
                    state = layer.initial_state(name, self.shape, self.dtype, self.device)
                else:
                    state = torch.zeros_like(x)
            if (
                type(state) is not Tensor
                or state.shape != self.shape
                or state.dtype is not self.dtype
                or state.device != self.device
                or functorch.is_functorch_wrapped_tensor(state)
            ):
                return None
            if state.is_neg() or not state.is_contiguous():
                state = state.resolve_neg().contiguous()
            starts.append(state)
            addresses.append(state.data_ptr())
        if not self._has_parameters_of(layer.__dict__):
            self._constrain_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends: dict[str, Tensor] = {}
        for name in self.states:
            ends[name] = end = torch.empty_like(x)
            addresses.append(end.data_ptr())
        self.kernel(x.data_ptr(), output.data_ptr(), addresses)
        return output, ends

    def _has_parameters_of(self, attributes: dict[str, Any]) -> bool:
        """Whether every raw value is what it was when the parameters were constrained.

        Values are compared: a fused optimizer, or ``.data``, leaves no other trace.
        """
        parameters: dict[str, Any] = attributes["_parameters"]
        for name, address, size, content, view in self.raw_values:
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
        return bool(self.raw_values) or not self.raw_names

    def _constrain_parameters(self, layer: StepLayer) -> None:
        """Constrain the parameters, and note the raw values that they follow from."""
        kwargs = layer.step_kwargs(len(self.shape), self.dtype)
        places = self.packed.reshape(-1, self.cell.num_neurons, self.inner)
        write_parameters([kwargs[name] for name in self.params], places[: len(self.params)])
        raw_values = []
        for name in self.raw_names:
            # the copy of a negative view has another address: it is constrained at every step
            raw = getattr(layer, name).detach().resolve_neg()
            # DLPack keeps the memory, so that the address stays its own; .numpy() would keep it
            # from being freed by FSDP. As integers, because NumPy has no bfloat16.
            view = np.from_dlpack(raw.view(_INTEGERS[raw.element_size()]))
            raw_values.append((name, raw.data_ptr(), raw.numel(), view.tobytes(), view))
        self.raw_values = tuple(raw_values)
