"""Run one step without a graph: the compiled step that ``layer(x)`` runs under ``no_grad``.

What a step costs here is not arithmetic but the calls around it. So everything that can be computed
once is, for one shape of input; each call then checks that nothing has changed, allocates what it
returns, and makes one call by address.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.torch_private import (
    dispatch_modes,
    forward_ad_active,
    functorch_active,
    is_jit_tracing,
)
from tracetorch.core.walk import Opaque
from tracetorch.fuse.codegen.numba_step import step_source
from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.dispatch.backends import requested_backend, unavailable_reason
from tracetorch.fuse.dispatch.plans import dim_from_end, program_of
from tracetorch.fuse.dispatch.unchanged_step import UnchangedStep
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.protocol import StepLayer
from tracetorch.fuse.runtime.kernel_cache import compiled_at
from tracetorch.fuse.runtime.memory import write_parameters

_MOST_LANES = 1 << 15  # for more, PyTorch's own threads are as fast
_MOST_SHAPES = 4  # for which a layer keeps its compiled steps
# by size, to see a tensor's bytes at any stride
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SingleStepCache(Opaque):
    """The compiled steps of one layer, a few shapes of input each with its own."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[CompiledStep] = []

    def run(self, layer: StepLayer, x: Tensor) -> Tensor | None:
        """Run one step by the compiled kernel; ``None`` where the eager step must do it.

        The new states are left on the layer.
        """
        if (
            type(x) is not Tensor
            or dispatch_modes()
            or functorch_active()
            or is_jit_tracing()
            or forward_ad_active()
            or x.is_neg()
            or requested_backend() not in ("auto", "numba")
        ):
            return None
        steps = self.steps
        if not steps or not steps[0].fits(layer, x):
            # the last one used comes first: a batch that comes and goes finds its own again
            fitting = next((s for s in steps if s.fits(layer, x)), None) or CompiledStep(layer, x)
            rest = [s for s in steps if s is not fitting][: _MOST_SHAPES - 1]
            self.steps = steps = [fitting, *rest]
        return steps[0].run(layer, x)


class CompiledStep:
    """A layer's step, compiled for one shape and dtype of input.

    Args:
        layer: whose step.
        x: an input.

    """

    def __init__(self, layer: StepLayer, x: Tensor) -> None:
        self.shape, self.dtype, self.on_cpu = x.shape, x.dtype, x.is_cpu
        self.states = layer.active_states
        self.unchanged = UnchangedStep(layer, layer.step_kwargs)
        self.raw_names = layer.raw_names
        self.params: tuple[str, ...] = ()
        # name, address, size, strides, bytes and a view of every raw parameter when it was last
        # constrained
        self.raw_values: tuple[tuple[str, int, int, Any, bytes, Any], ...] = ()
        # what the last call left, and where
        self.last_states: list[Tensor] = []
        self.last_addresses: list[int] = []
        plan = self._plan(layer, x)
        self.kernel: Callable[..., None] | None = None
        if plan is not None:
            self.params = plan.program.params
            self.inner = math.prod(x.shape[x.ndim + plan.dim + 1 :])
            columns = layer.num_neurons * self.inner
            real = np.dtype(real_name(self.dtype)).type
            self.literals = np.array(plan.literals or (0.0,), real)
            self.packed = np.zeros(max(1, len(self.params)) * columns, real)
            self.fixed_arguments = (
                x.numel() // columns,
                columns,
                self.packed.ctypes.data,
                self.literals.ctypes.data,
            )
            self.kernel = compiled_at(*step_source(plan))

    def _plan(self, layer: StepLayer, x: Tensor) -> Plan | None:
        if (
            not 0 < x.numel() <= _MOST_LANES
            or x.dtype not in (torch.float32, torch.float64)
            or not self.unchanged.is_comparable
            or unavailable_reason("numba", x.device) is not None
        ):
            return None
        try:
            program = program_of(layer, x.ndim, layer.check_input(x))
        except Unfusable:
            return None
        dim = dim_from_end(layer, x.ndim)
        return Plan(
            program,
            backend="numba",
            dim=dim,
            record=(),
            has_backward=False,
            differentiated=(),
            trained=(),
        )

    def fits(self, layer: StepLayer, x: Tensor) -> bool:
        """Whether it was compiled for such an input, and for the options that hold now."""
        # not which device: none but the CPU has a kernel
        if x.shape != self.shape or x.dtype is not self.dtype or x.is_cpu is not self.on_cpu:
            return False
        return self.unchanged.holds(layer)

    def run(self, layer: StepLayer, x: Tensor) -> Tensor | None:
        """Return the output, new states on the layer; ``None`` where it cannot run here."""
        if self.kernel is None or not x.is_contiguous():
            return None
        attributes = layer.__dict__
        states = [attributes[name] for name in self.states]
        starts = self._addresses_left(states)
        if not starts:
            checked = layer.states_for(x, layer.check_input(x))
            states = [s.resolve_neg().contiguous() for s in checked if s is not None]
            starts = list(map(Tensor.data_ptr, states))
        self._refresh_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends = [torch.empty_like(x) for _ in states]
        self.last_addresses = list(map(Tensor.data_ptr, ends))
        addresses = (x.data_ptr(), output.data_ptr(), *starts, *self.last_addresses)
        self.kernel(*self.fixed_arguments, *addresses)
        attributes.update(zip(self.states, ends, strict=False))
        self.last_states = ends
        return output

    def _addresses_left(self, states: list[Any]) -> list[int]:
        """Return the addresses of the states; none unless they are as the last call left them.

        The tensor may be the same and its memory another, after ``state.data = ...``.
        """
        if not self.last_states or not all(map(operator.is_, states, self.last_states)):
            return []
        # no device: what is at the same address is on the same one
        shape, dtype = self.shape, self.dtype
        for s in states:
            if s.shape != shape or s.dtype is not dtype or not s.is_contiguous():
                return []
        addresses = list(map(Tensor.data_ptr, states))
        return addresses if addresses == self.last_addresses else []

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
        places = self.packed.reshape(-1, layer.num_neurons, self.inner)
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
