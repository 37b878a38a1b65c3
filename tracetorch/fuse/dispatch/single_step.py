"""Run one step without a graph: the compiled step that ``layer(x)`` runs under ``no_grad``.

What a step costs here is not arithmetic but the calls around it. So everything that can be computed
once is, for one shape of input; each call then checks that nothing has changed, allocates what it
returns, and makes one call by address.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.cell import Cell, StepLayer
from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.dispatch.backends import requested_backend, unavailable_reason
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.dispatch.unchanged_step import UnchangedStep
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.cpu import NumbaBackend
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
        self.requested = requested_backend()
        self.states, self.raw_names = cell.active, cell.raw_names
        self.unchanged = UnchangedStep(cell)
        self.is_current = self.unchanged.holds
        self.params: tuple[str, ...] = ()
        # name, address, size, strides, bytes and a view of every raw parameter when it was last
        # constrained
        self.raw_values: tuple[tuple[str, int, int, Any, bytes, Any], ...] = ()
        # what the last call left, and where
        self.last_states: list[Tensor] = []
        self.last_addresses: list[int] = []
        plan = self._plan(layer, cell, x)
        self.kernel: Callable[[tuple[int, ...]], None] | None = None
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
            or self.requested not in ("auto", "numba")
            or not self.unchanged.is_comparable
            or unavailable_reason("numba", x.device) is not None
        ):
            return None
        try:
            kwargs = layer.step_kwargs(x.ndim, x.dtype)
            program = program_of(cell, x.ndim, layer.check_input(x), kwargs)
        except Unfusable:
            return None
        return Plan(
            program,
            backend=NumbaBackend.name,
            dim=cell.dim_from_end(x.ndim),
            record=(),
            has_backward=False,
            differentiated=(),
            trained=(),
        )

    def run(self, layer: StepLayer, x: Tensor) -> Tensor | None:
        """Return the output, new states on the layer; ``None`` where the eager step must run."""
        if self.kernel is None or not x.is_contiguous():
            return None
        attributes = layer.__dict__
        starts = self._addresses_left(attributes)
        if not starts:
            checked = layer.states_for(x, layer.check_input(x))
            states = [s.resolve_neg().contiguous() for s in checked if s is not None]
            starts = list(map(Tensor.data_ptr, states))
        self._refresh_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends: list[Tensor] = []
        for _ in self.states:
            ends.append(torch.empty_like(x))
        left = list(map(Tensor.data_ptr, ends))
        self.kernel((x.data_ptr(), output.data_ptr(), *starts, *left))
        attributes.update(zip(self.states, ends, strict=False))
        self.last_states, self.last_addresses = ends, left
        return output

    def _addresses_left(self, attributes: dict[str, Any]) -> list[int]:
        """Return the addresses of the states; none unless they are as the last call left them.

        The tensor may be the same and its memory another, after ``state.data = ...``.
        """
        # no device: what is at the same address is on the same one
        shape, dtype = self.shape, self.dtype
        last = zip(self.states, self.last_states, self.last_addresses, strict=False)
        for name, state, address in last:
            if (
                attributes[name] is not state
                or state.data_ptr() != address
                or state.shape != shape
                or state.dtype is not dtype
                or not state.is_contiguous()
            ):
                return []
        return self.last_addresses

    def _refresh_parameters(self, layer: StepLayer) -> None:
        """Constrain the parameters anew if any raw value is another than it was.

        Values are compared: a fused optimizer, or ``.data``, leaves no other trace.
        """
        if self.raw_values or not self.raw_names:
            parameters: dict[str, Any] = layer.__dict__["_parameters"]
            buffers: dict[str, Any] = layer.__dict__["_buffers"]
            for name, address, size, stride, content, view in self.raw_values:
                raw = parameters.get(name, buffers.get(name))
                if (
                    raw is None
                    or raw.data_ptr() != address
                    or raw.numel() != size
                    or raw.stride() != stride
                    or view.tobytes() != content
                ):
                    break
            else:
                return
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
            raw_values.append(
                (name, raw.data_ptr(), raw.numel(), raw.stride(), view.tobytes(), view)
            )
        self.raw_values = tuple(raw_values)
