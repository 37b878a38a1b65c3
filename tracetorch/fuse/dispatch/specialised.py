"""``Specialised``: keep what one call of a layer has found out, for all calls like it.

A call on few time steps costs more in checks and look-ups than in arithmetic. So program, plans,
layout and kernels are found once for a cell, one shape of input, and the settings; each call then
compares what they depend on. What is not compared here, or differs, takes the general way, which
checks and explains everything.
"""

from __future__ import annotations

import abc
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.cell import Cell, StepLayer
from tracetorch.core.torch_private import functorch
from tracetorch.core.walk import Opaque
from tracetorch.fuse.codegen.llvm_kernel import print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.dispatch import operators
from tracetorch.fuse.dispatch.backends import backend, select_backend
from tracetorch.fuse.dispatch.plans import Needs, plan_for_needs, program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import step_kernel
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime.backend import Backend, Operands
from tracetorch.fuse.runtime.layout import layout_of
from tracetorch.fuse.runtime.machine_code import compiled, this_machine

States: TypeAlias = "Mapping[str, Tensor | None]"
Result: TypeAlias = "tuple[Tensor, dict[str, Tensor]]"
# cell, shape, dtype and device of the input, requested backend, default dtype
Key: TypeAlias = "tuple[Cell, torch.Size, torch.dtype, torch.device, str, torch.dtype]"

_requests = backend.requests
_MOST = 4  # shapes that a layer keeps something for
_SMALL = 1 << 18  # values of a state that are worth keeping as zeros
_MOST_LANES = 1 << 15  # for more, PyTorch's own threads are as fast
# by size, to see a tensor's bytes at any stride
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Specialisation(abc.ABC):
    """Base of what is kept for one key of a layer, of a step or, with ``time``, of a sequence."""

    program: Program
    backend: Backend

    def __init__(self, layer: StepLayer, key: Key, x: Tensor, *, time: bool) -> None:
        self.key, self.cell, self.dtype, self.device = key, key[0], x.dtype, x.device
        self.shape = x.shape[time:]  # of one step
        # a state of zeros that every call reads, unless it is large, or on a GPU, where another
        # stream could read it before it is filled, and a CUDA graph would fill it when it runs
        self.rest: Tensor | None = None
        backend, cell = select_backend(x.device), self.cell
        self.runs = (
            backend is not None
            and self.dtype in (torch.float32, torch.float64)  # narrower inputs are cast
            and x.numel() > 0
            and cell.is_comparable
            and cell.has_plain_states
            and backend.unavailable_reason(x.device) is None
        )
        if self.runs:
            self.backend = cast(Backend, backend)
            layer._check_input(x, sequence=time)
            with torch.no_grad():  # checkpointing counts what is saved, the first time and again
                kwargs = layer.step_kwargs(len(self.shape), self.dtype)
            try:
                self.program = program_of(cell, len(self.shape), self.dtype, kwargs, self.device)
                self.runs = self.backend.unsupported_reason(self.program, self.device) is None
            except Unfusable:
                self.runs = False
        self.runs = self.runs and self.prepare(x, kwargs)

    @abc.abstractmethod
    def prepare(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Find out the rest, from an input and the step kwargs; return whether it can run."""

    @abc.abstractmethod
    def run(self, layer: StepLayer, x: Tensor, states: States) -> Result | None:
        """Return the output and the end states; ``None`` where the general way must be taken."""

    def starts(self, layer: StepLayer, states: States) -> list[Tensor] | None:
        """Return the states before the first step; ``None`` where one does not fit."""
        found: list[Tensor] = []
        rest = self.rest
        for name in self.cell.active:
            state = states[name]
            if state is None:
                if name not in self.cell.starts:
                    if rest is None:
                        with torch.inference_mode(False):  # a later call may be part of a graph
                            rest = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
                        if rest.is_cpu and rest.numel() <= _SMALL:
                            self.rest = rest
                    found.append(rest)
                    continue
                state = layer.initial_state(name, self.shape, self.dtype, self.device)
            if (
                type(state) is not Tensor
                or state.shape != self.shape
                or state.dtype is not self.dtype
                or state.device != self.device
                or functorch.is_functorch_wrapped_tensor(state)
            ):
                return None
            found.append(state)
        return found


S = TypeVar("S", bound=Specialisation)


class Specialised(Opaque, Generic[S]):
    """Specialisations that a layer keeps, the last one used first; a batch finds its own again.

    Pickles and copies are empty: what is kept belongs to this process and this layer.
    """

    __slots__ = ("kept", "kind")

    def __init__(self, kind: Callable[[StepLayer, Key, Tensor], S]) -> None:
        self.kind = kind
        self.kept: list[S] = []

    def __reduce__(self) -> tuple[type[Specialised[S]], tuple[Callable[..., S]]]:
        return type(self), (self.kind,)

    def run(self, layer: StepLayer, cell: Cell, x: Tensor, states: States) -> Result | None:
        """Return the output and the end states by name; ``None``: the general way must be taken.

        Nothing is written: neither to the layer nor to ``states``.

        Args:
            layer: the layer, whose parameters are read.
            cell: what it is.
            x: an input that nobody observes.
            states: the active ones before ``x``, by name; ``None`` is the initial one.
        """
        kept, names = self.kept, _requests.in_thread.names
        requested = names[-1] if names else _requests.default  # as requested_backend, uncalled
        key = (cell, x.shape, x.dtype, x.device, requested, torch.get_default_dtype())
        for each in kept:
            if each.key == key:
                if each is not kept[0]:
                    self.kept = [each, *(other for other in kept if other is not each)]
                return each.run(layer, x, states) if each.runs else None
        if requested == "eager":
            return None
        new = self.kind(layer, key, x)
        self.kept = [new, *kept][:_MOST]
        return new.run(layer, x, states) if new.runs else None


# A sequence


@final
class PreparedSequence(Specialisation):
    """A layer's sequence: plans by the gradients that are needed."""

    def __init__(self, layer: StepLayer, key: Key, x: Tensor) -> None:
        with torch.no_grad():  # parameters, buffers or parametrizations
            raws = [(name, getattr(layer, name)) for name in key[0].raw_names]
        self.raws = [(name, raw.shape, raw.dtype) for name, raw in raws]
        self.plans: dict[tuple[bool, ...], Plan] = {}
        super().__init__(layer, key, x, time=True)

    def prepare(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Find the layout of contiguous memory, and how parameters are constrained."""
        constraints = self.cell.constraints
        self.dim = self.cell.dim_from_end(x.ndim - 1)
        self.layout = layout_of(x.new_empty(x.shape), self.dim)
        constrained = [
            operators.Constrained(each.value, each.gradient)
            for name, each in constraints.items()
            if each.gradient is not None
        ]
        self.constrained = tuple(constrained)
        return self.program.params == tuple(constraints) and len(constrained) == len(constraints)

    def run(self, layer: StepLayer, x: Tensor, states: States) -> Result | None:
        """Return outputs and final states, part of the graph where one is built."""
        starts = self.starts(layer, states)
        if starts is None or self.device in self.program.refused:
            return None
        with_graph = torch.is_grad_enabled()
        # what needs a gradient: the input, a state, each parameter
        needs = [with_graph and x.requires_grad, False]
        for state in starts:
            if state.is_neg() or state.is_inference():
                return None
            if with_graph and state.requires_grad:
                needs[1] = True
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
        found = tuple(needs)
        plan = self.plans.get(found)
        if plan is None:
            trained = [n for n, g in zip(self.cell.constraints, found[2:], strict=True) if g]
            wanted = Needs(any(found), ("x",) if found[0] else (), tuple(trained))
            plan = plan_for_needs(self.program, self.backend, self.dim, (), wanted)
            self.plans[found] = plan
        layout = self.layout if x.is_contiguous() else layout_of(x, self.dim)
        given = Operands((x,), starts, raws)
        results = operators.run_raw(plan, layout, self.constrained, given)
        return results[0], dict(zip(self.cell.active, results[1:], strict=True))


# A step


@final
class CompiledStep(Specialisation):
    """A layer's step without a graph: a kernel on memory at given addresses, in one thread."""

    kernel: Callable[[int, int, list[int]], None] | None = None

    def __init__(self, layer: StepLayer, key: Key, x: Tensor) -> None:
        # name, address, size, bytes and a view of every raw parameter when it was last constrained
        self.raw_values: list[tuple[str, int, int, bytes, Any]] = []
        super().__init__(layer, key, x, time=False)

    def prepare(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Compile the step."""
        if self.backend.name != "cpu" or self.cell.runs_by_step or x.numel() > _MOST_LANES:
            return False
        dim, states = self.cell.dim_from_end(x.ndim), len(self.program.states)
        plan = Plan(self.program, "cpu", dim, (), False, (), ())
        inner = math.prod(x.shape[x.ndim + dim + 1 :])
        columns, real = self.cell.num_neurons * inner, str(self.dtype).removeprefix("torch.")
        rows, count = x.numel() // columns, len(self.program.params)
        # a row of parameters of each lane, and the literals: read at each step, so kept alive
        self.packed = np.zeros((max(1, count), self.cell.num_neurons, inner), real)
        self.literals = np.array(plan.literals or (0.0,), real)
        printed = print_kernel(step_kernel(plan), this_machine().processor, serial=True)
        run = compiled(printed.text, printed.name).run
        # in the order of llvm_kernel.GEOMETRY: one task, of all lanes
        fixed = [0] * HEADER + [columns, rows * columns, rows, rows, columns, columns, 1]
        for place in self.packed[:count]:
            fixed += (place.ctypes.data, columns)
        first = struct.pack(f"={len(fixed) + 1}q", *fixed, self.literals.ctypes.data)
        pack = struct.Struct(f"={2 + 2 * states}q").pack
        # ctypes passes the address of the bytes, and keeps them
        self.kernel = lambda x, output, states: run(first + pack(x, output, *states))
        return True

    def run(self, layer: StepLayer, x: Tensor, states: States) -> Result | None:
        """Return the output and the next states."""
        starts = self.starts(layer, states)
        if starts is None or self.kernel is None or not x.is_contiguous():
            return None
        for place, state in enumerate(starts):
            if state.is_neg() or not state.is_contiguous():
                starts[place] = state.resolve_neg().contiguous()
        if not self._has_parameters_of(layer.__dict__):
            self._constrain_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends = {name: torch.empty_like(x) for name in self.cell.active}
        addresses = [*map(Tensor.data_ptr, starts), *map(Tensor.data_ptr, ends.values())]
        self.kernel(x.data_ptr(), output.data_ptr(), addresses)
        return output, ends

    def _has_parameters_of(self, attributes: dict[str, Any]) -> bool:
        """Whether raw values are the same: a fused optimizer, or ``.data``, leaves no trace."""
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
        return len(self.raw_values) == len(self.cell.constraints)

    def _constrain_parameters(self, layer: StepLayer) -> None:
        """Constrain the parameters, and note the raw values that they follow from."""
        kwargs = layer.step_kwargs(len(self.shape), self.dtype)
        for place, value in zip(self.packed, self.program.tensors(kwargs), strict=False):
            # not .numpy(): FSDP could not free the memory between two passes
            place[...] = np.from_dlpack(value.detach()).reshape(-1, 1)
        raw_values: list[tuple[str, int, int, bytes, Any]] = []
        for name in self.cell.raw_names:
            # the copy of a negative view has another address: it is constrained at every step
            raw = getattr(layer, name).detach().resolve_neg()
            # DLPack keeps the memory, so that the address stays its own. As integers, because NumPy
            # has no bfloat16.
            view = np.from_dlpack(raw.view(_INTEGERS[raw.element_size()]))
            raw_values.append((name, raw.data_ptr(), raw.numel(), view.tobytes(), view))
        self.raw_values = raw_values
