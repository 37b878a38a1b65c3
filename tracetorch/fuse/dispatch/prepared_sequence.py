"""Prepare a layer's sequences: what one call has found out serves all that are like it.

A call on few time steps costs more in checks and look-ups than in arithmetic. So program, plans and
layout are found once for one shape of input, and each call then compares what they depend on. What
is not compared here, or differs, takes the general way, which checks and explains everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from tracetorch.cell import Cell, StepLayer
from tracetorch.core.torch_private import functorch
from tracetorch.fuse.dispatch import operators
from tracetorch.fuse.dispatch.backends import requested_backend, select_backend
from tracetorch.fuse.dispatch.plans import plan_for_needs, program_of
from tracetorch.fuse.dispatch.second_derivative import Call
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.backend import Backend
from tracetorch.fuse.runtime.layout import Layout, layout_of

_SMALL = 1 << 18  # values of a state that are worth keeping as zeros
_DTYPES = (torch.float32, torch.float64)  # narrower inputs are cast


class PreparedSequence:
    """A layer's sequence for one shape and dtype of input: a preparation of the layer.

    Args:
        layer: the layer.
        cell: what it is.
        x: an input ``[T, ...]``.
    """

    def __init__(self, layer: StepLayer, cell: Cell, x: Tensor) -> None:
        self.cell, self.shape, self.dtype, self.device = cell, x.shape, x.dtype, x.device
        self.step_shape = x.shape[1:]
        self.states, self.starts = cell.active, cell.starts
        # parameters, buffers or parametrizations
        raws = [(name, getattr(layer, name)) for name in cell.raw_names]
        self.raws = tuple([(name, raw.shape, raw.dtype) for name, raw in raws])
        self.requested, self.default_dtype = requested_backend(), torch.get_default_dtype()
        self.backend = select_backend(x.device)
        self.constrained: tuple[operators.Constrained, ...] = ()
        self.plans: dict[tuple[bool, ...], Plan] = {}
        self.rest: Tensor | None = None  # a state of zeros, which every call reads
        self.runs = False
        if (
            self.backend is not None
            and self.backend.unavailable_reason(x.device) is None
            and self.dtype in _DTYPES
            and cell.is_comparable
            and cell.has_plain_states
            and all(each.gradient for each in cell.constraints.values())
        ):
            self._prepare(layer, x)

    def _prepare(self, layer: StepLayer, x: Tensor) -> None:
        cell = self.cell
        layer.check_input(x, sequence=True)
        with torch.no_grad():  # checkpointing counts what is saved, the first time and again
            kwargs = layer.step_kwargs(x.ndim - 1, x.dtype)
        try:
            self.program = program_of(cell, x.ndim - 1, x.dtype, kwargs)
        except Unfusable:
            return
        if cast(Backend, self.backend).unsupported_reason(self.program) is not None:
            return
        if self.program.params != tuple(cell.constraints) or not x.numel():
            return
        self.dim = cell.dim_from_end(x.ndim - 1)
        self.constrained = tuple(
            [
                operators.Constrained(each.value, each.gradient, kwargs[name].shape)
                for name, each in cell.constraints.items()
                if each.gradient is not None
            ]
        )
        # flags and spike functions: the same as long as the cell is
        options = {n: value for n, value in kwargs.items() if n not in cell.constraints}
        self.call = Call(cell, options)
        # of contiguous memory; another order is looked at in each call
        self.layout: Layout = layout_of(x.new_empty(x.shape), self.dim)
        self.runs = True

    def _zeros(self) -> Tensor:
        """Return a state of zeros, the same one in every call unless it is large."""
        with torch.inference_mode(False):  # a later call may be part of a graph
            zeros = torch.zeros(self.step_shape, dtype=self.dtype, device=self.device)
        if zeros.numel() <= _SMALL:
            self.rest = zeros
        return zeros

    def run(
        self, layer: StepLayer, x: Tensor, states: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return outputs, and final states by name; ``None`` where it cannot run here."""
        if not self.runs:
            return None
        with_graph = torch.is_grad_enabled()
        # what needs a gradient: the input, a state, each parameter
        needs = [with_graph and x.requires_grad, False]
        starts: list[Tensor] = []
        for name in self.states:
            state = states[name]
            if state is None and name not in self.starts:
                starts.append(self._zeros() if self.rest is None else self.rest)
                continue
            if state is None:
                state = layer.initial_state(name, self.step_shape, self.dtype, self.device)
            if (
                type(state) is not Tensor
                or state.shape != self.step_shape
                or state.dtype is not self.dtype
                or state.device != self.device
                or functorch.is_functorch_wrapped_tensor(state)
                or state.is_neg()
                or state.is_inference()
            ):
                return None
            if with_graph and state.requires_grad:
                needs[1] = True
            starts.append(state)
        parameters = layer.__dict__["_parameters"]
        raws: list[Tensor] = []
        for name, shape, dtype in self.raws:
            raw = parameters.get(name)
            if raw is None:
                raw = getattr(layer, name)
            if (
                type(raw) not in (nn.Parameter, Tensor)
                or raw.shape != shape
                or raw.dtype is not dtype
                or raw.device != self.device
                or raw.is_neg()
            ):
                return None
            raws.append(raw)
            needs.append(with_graph and raw.requires_grad)
        key = tuple(needs)
        plan = self.plans.get(key)
        if plan is None:
            trained = tuple([n for n, g in zip(self.cell.constraints, key[2:], strict=True) if g])
            differentiated = ("x",) if key[0] else ()
            program, backend = self.program, cast(Backend, self.backend)
            plan = plan_for_needs(program, backend, self.dim, (), any(key), differentiated, trained)
            self.plans[key] = plan
        layout = self.layout if x.is_contiguous() else layout_of(x, self.dim)
        results = operators.run_raw(plan, self.call, layout, self.constrained, (x,), starts, raws)
        return results[0], dict(zip(self.states, results[1:], strict=True))
