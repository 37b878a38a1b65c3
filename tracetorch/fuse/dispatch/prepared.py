"""``Prepared``: what all calls of a layer with inputs of one shape share, and their autograd node.

On few steps checks and look-ups cost more than arithmetic: program, plans, layout and kernels are
found once for a cell, a shape, dtype and device, and the settings. What is not compared here, or
differs, takes the general way (:func:`run_sequence`), which checks and explains everything.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.cell import Cell, Constraint, ConstraintGradient, StepDefinition, StepLayer
from tracetorch.core.torch_private import functorch, observed_by
from tracetorch.core.walk import Opaque
from tracetorch.fuse.codegen.llvm_kernel import print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.dispatch.backends import backend, backend_named, select_backend
from tracetorch.fuse.dispatch.operators import (
    backward_inputs,
    no_second_gradient,
    run_backward,
    run_forward,
    split,
    wanted_gradients,
)
from tracetorch.fuse.dispatch.plans import (
    Needs,
    gradient_needs,
    plan_for,
    plan_for_needs,
    plan_key,
    register,
    supported_program,
)
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import step_kernel
from tracetorch.fuse.runtime.allocation import Layout, layout_of
from tracetorch.fuse.runtime.backend import Operands, run_eagerly
from tracetorch.fuse.runtime.machine_code import compiled, this_machine

States: TypeAlias = "Mapping[str, Tensor | None]"
Result: TypeAlias = "tuple[Tensor, dict[str, Tensor]]"
# cell, shape, dtype and device of the input, requested backend, default dtype, whether it has time
Key: TypeAlias = "tuple[Cell, torch.Size, torch.dtype, torch.device, str, torch.dtype, bool]"

_requests = backend.requests
_MOST = 8  # keys that a layer keeps something for
_SMALL = 1 << 18  # values of a state that are worth keeping as zeros
_MOST_LANES = 1 << 15  # of a compiled step; for more, PyTorch's own threads are as fast
# by size, to see a tensor's bytes at any stride
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NEEDED = [name for name in vars(StepLayer) if not name.startswith("_") and name != "cell"]


@final
class PreparedCalls(Opaque):
    """Prepared calls of a layer by key; pickles and copies are empty."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: dict[Key, Prepared] = {}

    def __reduce__(self) -> tuple[type[PreparedCalls], tuple[()]]:
        return PreparedCalls, ()

    def run(
        self, layer: StepLayer, cell: Cell, x: Tensor, states: States, with_time: bool
    ) -> Result | None:
        """Return outputs and end states by name; ``None``: the general way must be taken.

        Nothing is written: neither to the layer nor to ``states``. A single step has no graph.

        Args:
            layer: the layer, whose parameters are read.
            cell: what it is.
            x: an input that nobody observes.
            states: the active ones before ``x``, by name; ``None`` is the initial one.
            with_time: whether ``x`` is a sequence.
        """
        names = _requests.in_thread.names
        requested = names[-1] if names else _requests.default  # as requested_backend, uncalled
        if requested == "eager":
            return None
        key = (cell, x.shape, x.dtype, x.device, requested, torch.get_default_dtype(), with_time)
        prepared = self.kept.get(key)
        if prepared is None:
            prepared = Prepared(layer, key, x)
            # another dictionary, because another thread may be looking into this one
            self.kept = dict([*list(self.kept.items())[1 - _MOST :], (key, prepared)])
        if not prepared.runs:
            return None
        # looked at before a state is made, which may draw random numbers
        if prepared.device in prepared.program.refused if with_time else not x.is_contiguous():
            return None
        starts = prepared.starts(layer, states)
        if starts is None:
            return None
        if not with_time:
            return prepared.step(layer, x, starts)
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
        for name, shape, dtype in prepared.raws:
            raw = parameters.get(name)
            if raw is None:
                raw = getattr(layer, name)
            if (
                type(raw) not in (nn.Parameter, Tensor)
                or raw.shape != shape
                or raw.dtype is not dtype
                or raw.device != prepared.device
                or raw.is_neg()
            ):
                return None
            raws.append(raw)
            needs.append(with_graph and raw.requires_grad)
        found = tuple(needs)
        plan = prepared.plans.get(found) or prepared.plan(found)
        layout = prepared.layout if x.is_contiguous() else layout_of(x, plan.dim)
        if plan.has_backward:
            output, *ends = _Node.apply(plan, layout, prepared.constraints, x, *starts, *raws)  # type: ignore[no-untyped-call]
        else:
            values: list[Tensor] = []
            for constraint, raw in zip(prepared.constraints, raws, strict=True):
                values.append(constraint.value(raw if raw.dtype is x.dtype else raw.to(x.dtype)))
            forward = run_forward if prepared.backend.tried else prepared.backend.forward
            output, *ends, _ = forward(plan, layout, Operands((x,), starts, values))
        return output, dict(zip(cell.active, ends, strict=True))


@final
class Prepared:
    """A program and its backend for one key, with plans of sequences or a compiled step."""

    def __init__(self, layer: StepLayer, key: Key, x: Tensor) -> None:
        self.cell, _, self.dtype, self.device, *_, with_time = key
        self.shape = x.shape[with_time:]  # of one step
        # a state of zeros that every call reads, unless it is large, or on a GPU, where another
        # stream could read it before it is filled, and a CUDA graph would fill it when it runs
        self.rest: Tensor | None = None
        self.runs = False
        cell, backend = self.cell, select_backend(x.device)
        if (
            backend is None
            or self.dtype not in (torch.float32, torch.float64)  # narrower inputs are cast
            or not x.numel()
            or not (cell.is_comparable and cell.has_plain_states)
            or backend.unavailable_reason(x.device) is not None
        ):
            return
        layer._check_input(x, sequence=with_time)
        with torch.no_grad():  # checkpointing counts what is saved, the first time and again
            kwargs = layer.step_kwargs(len(self.shape), self.dtype)
            # parameters, buffers or parametrizations
            raws = [(name, getattr(layer, name)) for name in cell.raw_names]
        settings = len(self.shape), self.dtype, self.device
        program, reason = supported_program(backend, cell, *settings, kwargs)
        if program is None or reason is not None:
            return
        self.program, self.backend = program, backend
        if not with_time:
            self.runs = backend.name == "cpu" and not cell.runs_by_step and x.numel() <= _MOST_LANES
            if self.runs:
                self._compile_step()
            return
        self.raws = [(name, raw.shape, raw.dtype) for name, raw in raws]
        self.plans: dict[tuple[bool, ...], Plan] = {}
        self.constraints = tuple(cell.constraints.values())
        self.layout = layout_of(x.new_empty(x.shape), cell.dim_from_end(len(self.shape)))
        have_gradients = None not in [each.gradient for each in self.constraints]
        self.runs = have_gradients and program.params == tuple(cell.constraints)

    def plan(self, needs: tuple[bool, ...]) -> Plan:
        """Return the plan where the input, a state, each parameter need a gradient, or do not."""
        trained = [n for n, need in zip(self.cell.constraints, needs[2:], strict=True) if need]
        wanted = Needs(any(needs), ("x",) if needs[0] else (), tuple(trained))
        dim = self.cell.dim_from_end(len(self.shape))
        self.plans[needs] = plan = plan_for_needs(self.program, self.backend, dim, (), wanted)
        return plan

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

    def _compile_step(self) -> None:
        """Compile a kernel of one thread, on memory at given addresses."""
        # name, address, size, bytes and a view of every raw parameter when it was last constrained
        self._raw_values: list[tuple[str, int, int, bytes, Any]] = []
        cell, program, ndim = self.cell, self.program, len(self.shape)
        dim, count = cell.dim_from_end(ndim), len(program.params)
        plan = Plan(program, "cpu", dim, (), False, (), ())
        inner = math.prod(self.shape[ndim + dim + 1 :])
        columns, real = cell.num_neurons * inner, str(self.dtype).removeprefix("torch.")
        rows = self.shape.numel() // columns
        # a row of parameters of each lane, and the literals: read at each step, so kept alive
        self._packed = np.zeros((max(1, count), cell.num_neurons, inner), real)
        self._literals = np.array(plan.literals or (0.0,), real)
        printed = print_kernel(step_kernel(plan), this_machine().processor, serial=True)
        self._kernel = compiled(printed.text, printed.name).run
        # in the order of llvm_kernel.GEOMETRY: one task, of all lanes
        fixed = [0] * HEADER + [columns, rows * columns, rows, rows, columns, columns, 1]
        for place in self._packed[:count]:
            fixed += (place.ctypes.data, columns)
        self._fixed = struct.pack(f"={len(fixed) + 1}q", *fixed, self._literals.ctypes.data)
        self._pack = struct.Struct(f"={2 + 2 * len(program.states)}q").pack

    def step(self, layer: StepLayer, x: Tensor, starts: list[Tensor]) -> Result:
        """Return the output and the next states by name, without a graph."""
        for place, state in enumerate(starts):
            if state.is_neg() or not state.is_contiguous():
                starts[place] = state.resolve_neg().contiguous()
        if not self._has_parameters_of(layer.__dict__):
            self._constrain_parameters(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends = {name: torch.empty_like(x) for name in self.cell.active}
        # ctypes passes the address of the bytes, and keeps them
        addresses = map(Tensor.data_ptr, (x, output, *starts, *ends.values()))
        self._kernel(self._fixed + self._pack(*addresses))
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
        return len(self._raw_values) == len(self.cell.constraints)

    def _constrain_parameters(self, layer: StepLayer) -> None:
        """Constrain the parameters, and note the raw values that they follow from."""
        kwargs = layer.step_kwargs(len(self.shape), self.dtype)
        for place, value in zip(self._packed, self.program.tensors(kwargs), strict=False):
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
        self._raw_values = raw_values


# The node of the graph


_SAME = Constraint("", lambda value: value, None, ConstraintGradient(lambda grad, *_: grad, False))


class _Node(torch.autograd.Function):
    """The loop and the constraints of its parameters: one node of the graph for all of time."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, layout: Layout, constraints: Sequence[Constraint], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        program = plan.program
        first, dtype = len(program.inputs), program.dtype
        second = first + len(program.states)
        inputs, states, raws = tensors[:first], tensors[first:second], tensors[second:]
        values: list[Tensor] = []
        # only what is read is saved: a parameter that is not may change before the backward pass
        read: list[Tensor | None] = []
        ctx.raws = []
        for constraint, raw in zip(constraints, raws, strict=True):
            values.append(constraint.value(raw if raw.dtype is dtype else raw.to(dtype)))
            reads = constraint.gradient.reads_raw  # type: ignore[union-attr]
            read.append(raw if reads else None)
            ctx.raws.append(None if reads else raw)
        given = Operands(inputs, states, values)
        backend = backend_named(plan.backend)
        forward = run_forward if backend.tried else backend.forward
        *results, checkpoints = forward(plan, layout, given)
        ctx.plan, ctx.order, ctx.constraints = plan, layout.order, constraints
        ctx.steps = len(inputs[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *states, *values, *read, checkpoints)
        if not all(plan.smooth_results):
            ends = zip(results, plan.smooth_results, strict=True)
            ctx.mark_non_differentiable(*(end for end, smooth in ends if not smooth))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            no_second_gradient(ctx, grads)
        plan, count = ctx.plan.given(grads, ctx.steps), len(ctx.plan.program.params)
        given, layout, checkpoints, incoming = backward_inputs(ctx, plan, grads)
        values, saved = given.params[:count], given.params[count:]
        given = given._replace(params=values)
        gradients = run_backward(plan, layout, given, checkpoints, incoming)
        of_inputs, of_states, of_values = split(plan, wanted_gradients(plan, gradients))
        of_raws: list[Tensor | None] = []
        for grad, value, constraint, was_saved, kept in zip(
            of_values, values, ctx.constraints, saved, ctx.raws, strict=True
        ):
            if grad is not None:
                grad, raw = grad.reshape(value.shape), kept if was_saved is None else was_saved
                if raw.dtype is value.dtype:  # nearly always
                    grad = constraint.gradient.function(grad, raw, value)
                else:
                    raw_value = raw.to(value.dtype)
                    grad = constraint.gradient.function(grad, raw_value, value).to(raw.dtype)
            of_raws.append(grad)
        return None, None, None, *of_inputs, *of_states, *of_raws


# Sequences after every check


def run_sequence(
    layer: StepLayer,
    cell: Cell | StepDefinition,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    record: tuple[str, ...],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Return outputs, final states, trajectories of ``[T, ...]``; nothing is kept on the layer."""
    active = [state for state in states if state is not None]
    x, needs = inputs[0], gradient_needs(cell, inputs, active, kwargs)
    results: Sequence[Tensor] | None = None
    if isinstance(cell, StepDefinition):
        key = plan_key(layer, x, record, needs, kwargs)
        if key is not None:
            parameters = [value for value in kwargs.values() if isinstance(value, Tensor)]
            results = torch.ops.tracetorch.forward(key, inputs, active, parameters)[:-1]
    else:
        plan = plan_for(cell, x.ndim - 1, x.dtype, x.device, record, needs, kwargs)
        if plan is not None:
            results = _run(plan, Operands(inputs, active, plan.program.tensors(kwargs)))
    if results is None:
        return run_eagerly(cell, inputs, states, kwargs, record)
    last = 1 + len(active)
    return results[0], results[1:last], results[last:]


def _run(plan: Plan, given: Operands) -> Sequence[Tensor]:
    """Return outputs, final states and trajectories, from values of the parameters."""
    tensors = (*given.inputs, *given.states, *given.params)
    # wrappers, dispatch modes and lazily negated tensors must see an operator
    if observed_by(tensors) is not None:
        results = torch.ops.tracetorch.forward(register(plan), *given)[:-1]
        pairs = zip(results, plan.smooth_results, strict=True)
        return [end if smooth else end.detach() for end, smooth in pairs]
    layout = layout_of(given.inputs[0], plan.dim)
    if not plan.has_backward:
        return run_forward(plan, layout, given)[:-1]
    return _Node.apply(plan, layout, (_SAME,) * len(given.params), *tensors)  # type: ignore[no-untyped-call, no-any-return]


def unsupported_reason(name: str, layer: object, x: Tensor) -> str | None:
    """Return why a backend would not run ``layer`` over ``x``, or ``None``.

    Args:
        name: ``"cpu"``, ``"triton"`` or ``"eager"``.
        layer: a neuron layer; for anything without a ``step`` the reason says so.
        x: the inputs ``[T, ...]``.

    Raises:
        TypeError, ValueError: as the layer itself.

    Example:
        >>> unsupported_reason("eager", LIF(3), torch.ones(4, 2, 3)) is None
        True
        >>> unsupported_reason("cpu", nn.Linear(3, 3), torch.ones(4, 2, 3))
        'Linear is no layer of neurons: ask it of an snn.Neuron, not of a class or network'
    """
    if isinstance(layer, type) or not all(hasattr(layer, name) for name in _NEEDED):
        name = layer.__name__ if isinstance(layer, type) else type(layer).__name__
        return f"{name} is no layer of neurons: ask it of an snn.Neuron, not of a class or network"
    layer = cast(StepLayer, layer)
    dtype = layer._check_input(x, sequence=True)
    if layer.cell.runs_by_step:
        return "methods of its own must see every step, so it is called once for each"
    name = _requests.check(name)
    if name in ("auto", "eager"):
        return None
    with torch.no_grad():
        kwargs = layer.step_kwargs(x.ndim - 1, dtype)
    settings = x.ndim - 1, dtype, x.device
    return supported_program(backend_named(name), layer.cell, *settings, kwargs)[1]
