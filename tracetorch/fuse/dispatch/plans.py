"""Plan a call: programs by what a step does, plans by what a call needs of a program."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition, StepLayer
from tracetorch.core.reads import Reads, reads_pytorch_alone
from tracetorch.core.torch_private import constant_in_compile
from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.dispatch.backends import (
    backend_named,
    report_fallback,
    requested_backend,
    select_backend,
)
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import ABSENT, LearningPlan, Plan, RecurrentPlan
from tracetorch.fuse.ir.trace import Program, input_names, trace
from tracetorch.fuse.runtime.backend import Backend

_programs: dict[Hashable, Program | str] = {}
_MOST_PROGRAMS = 1024
_CPU = torch.device("cpu")


def program_of(
    cell: Cell, ndim: int, dtype: torch.dtype, kwargs: dict[str, Any], device: torch.device = _CPU
) -> Program:
    """Return the program of a cell, traced once for all whose step does the same."""
    constants = {name: value for name, value in kwargs.items() if not isinstance(value, Tensor)}
    params = tuple([name for name in kwargs if name not in constants])
    place = cell.dim_from_end(ndim)
    for name in params:  # one value for the layer, or one per neuron at ``dim``
        value = kwargs[name]
        sizes = list(zip(range(-value.ndim, 0), value.shape, strict=True))
        neurons = [s == 1 or (d == place and s == cell.num_neurons) for d, s in sizes]
        if value.ndim > ndim or value.dtype != dtype or not all(neurons):
            raise Unfusable(
                f"its argument {name!r} has shape {list(value.shape)} and {value.dtype}; kernels "
                f"take one value for the layer or one per neuron, in {dtype}"
            )
    reads, options = cell.reads, cell.options
    if constants.keys() != options.keys() or any(constants[n] is not options[n] for n in options):
        reads = Reads(cell.step, constants)
    if reads.beyond is not None:
        what = "numbers and plain functions that its code names. Declare what else it needs: "
        what += "self.option(...)"
        if reads.beyond.startswith(tuple([f"reads {n}{end}" for n in constants for end in " ."])):
            what = "numbers, words, flags and functions as options. Give it as one of these"
        raise Unfusable(f"its step {reads.beyond}; a kernel knows its arguments, and {what}")
    # a number that a step makes a tensor of has the default dtype
    settings = (ndim, dtype, torch.get_default_dtype(), device)
    key = (cell.name, *settings, cell.active, params, reads.key)
    result = _programs.get(key)
    if result is None:
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        try:
            result = trace(cell, ndim, dtype, kwargs, device)
        except Unfusable as reason:
            result = str(reason)
        _programs[key] = result
    if isinstance(result, str):
        raise Unfusable(result)
    return result


class Needs(NamedTuple):
    """The gradients that a call needs: whether any, of which inputs, of which parameters."""

    has_backward: bool
    differentiated: tuple[str, ...]
    trained: tuple[str, ...]


def gradient_needs(
    cell: Cell | StepDefinition,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
) -> Needs:
    """Return what has a gradient, of tensors that may be part of a graph."""
    if not torch.is_grad_enabled():
        return Needs(False, (), ())
    parameters = [(name, each) for name, each in kwargs.items() if isinstance(each, Tensor)]
    trained = tuple([name for name, each in parameters if each.requires_grad])
    named = zip(input_names(cell), inputs, strict=True)
    differentiated = tuple([name for name, x in named if x.requires_grad])
    learned = [state for state in states if state is not None and state.requires_grad]
    return Needs(bool(trained or differentiated or learned), differentiated, trained)


def supported_program(
    backend: Backend,
    cell: Cell,
    ndim: int,
    dtype: torch.dtype,
    device: torch.device,
    kwargs: dict[str, Any],
) -> tuple[Program | None, str | None]:
    """Return the program that a backend runs on a device, and why it does not, or ``None``."""
    reason = backend.unavailable_reason(device)
    if reason is not None:
        return None, reason
    try:
        program = program_of(cell, ndim, dtype, kwargs, device)
    except Unfusable as unfusable:
        return None, str(unfusable)
    return program, backend.unsupported_reason(program, device)


def plan_for(
    cell: Cell,
    ndim: int,
    dtype: torch.dtype,
    device: torch.device,
    record: tuple[str, ...],
    needs: Needs,
    kwargs: dict[str, Any],
    kind: Callable[..., Plan] = Plan,
) -> Plan | None:
    """Return the plan that runs a cell over sequences, or ``None``: it runs eagerly."""
    backend = select_backend(device)
    if backend is None:
        return None
    program, reason = supported_program(backend, cell, ndim, dtype, device, kwargs)
    if program is not None and reason is None:
        return plan_for_needs(program, backend, cell.dim_from_end(ndim), record, needs, kind)
    # all layers of a program whose kernel was refused are reported once
    refused = program is not None and device in program.refused
    report_fallback(cell.name if refused else str(cell.call), backend.name, str(reason))
    return None


def recurrent_plan_for(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    kwargs: dict[str, Any],
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> RecurrentPlan | None:
    """Return the plan for an output fed back through matrices, or ``None``: step by step."""
    if len(cell.inputs) > 1:
        return None  # the kernels feed the output back to the only input
    needs = gradient_needs(cell, (x,), (*states, first, weight, bias), kwargs)
    # what goes back to the outputs goes through the gradient of the input, whoever wants that
    needs = needs._replace(differentiated=("x",) if needs.has_backward else ())
    kind = LearningPlan if needs.has_backward and weight.requires_grad else RecurrentPlan
    plan = plan_for(cell, x.ndim - 1, x.dtype, x.device, (), needs, kwargs, kind)
    if not isinstance(plan, RecurrentPlan):
        return None
    return plan if bool(plan.differentiated) == needs.has_backward else None


@lru_cache(maxsize=512)
def plan_for_needs(
    program: Program,
    backend: Backend,
    dim: int,
    record: tuple[str, ...],
    needs: Needs,
    kind: Callable[..., Plan] = Plan,
) -> Plan:
    """Return the plan of a program, the same object each time; a backward pass holds its own."""
    # a parameter that no output depends on has no gradient to compute
    trained = tuple([name for name in needs.trained if f"p_{name}" in program.reached])
    differentiated = tuple([name for name in needs.differentiated if name in program.reached])
    wanted = (needs.has_backward, differentiated, trained, backend.tile)
    return kind(program, backend.name, dim, record, *wanted)


def plan_key(
    layer: StepLayer, x: Tensor, record: tuple[str, ...], needs: Needs, kwargs: dict[str, Any]
) -> str | None:
    """Return the key of :func:`plan_for` inside ``torch.compile``, where it is a constant."""
    if requested_backend() == "eager" or not reads_pytorch_alone(layer):
        return None
    numbers = _numbers_of(kwargs.values())
    if numbers is None:
        return None
    return _constant_key(
        layer, x.ndim - 1, x.dtype, str(x.device), record, tuple(needs), tuple(numbers)
    )


def _numbers_of(values: Iterable[Any]) -> list[object] | None:
    """Return numbers in arguments of a step; ``None`` where they cannot be seen."""
    numbers: list[object] = []
    for value in values:
        if type(value) is float:  # which is no constant to the compiler
            numbers.append(value.hex())
        elif value is None or type(value) in (bool, int, str):
            numbers.append(value)
        elif isinstance(value, Surrogate) and type(value).__module__ == Surrogate.__module__:
            fields = [getattr(value, name) for name in type(value).__dataclass_fields__]
            parts = _numbers_of(fields)
            if parts is None:
                return None
            numbers += [type(value).__name__, *parts]
        elif not isinstance(value, Tensor):
            return None
    return numbers


@constant_in_compile
def _constant_key(
    layer: StepLayer,
    ndim: int,
    dtype: torch.dtype,
    device: str,
    record: tuple[str, ...],
    needs: tuple[Any, ...],
    numbers: tuple[object, ...],
) -> str | None:
    """Return the key of the plan, once for each compilation and each ``numbers``."""
    with torch.no_grad():  # of values, where the compiler has but shapes
        kwargs = layer.step_kwargs(ndim, dtype)
    plan = plan_for(layer.cell, ndim, dtype, torch.device(device), record, Needs(*needs), kwargs)
    if plan is None:
        return None
    backend_named(plan.backend).prepare(plan, torch.device(device))
    return register(plan)


_registered: dict[str, Plan] = {}


def register(plan: Plan) -> str:
    """Return the key of ``plan``, by which the operators find it in this process from now on."""
    _registered.setdefault(plan.key, plan)
    return plan.key


def plan_of(key: str) -> Plan:
    """Return the plan behind a key that was registered in this process."""
    key, _, absent = key.partition(ABSENT)
    if absent:  # of a backward pass, which another process may have compiled
        return plan_of(key).without(frozenset(absent.split(",")))
    if key not in _registered:
        raise KeyError(
            f"no plan {key!r} in this process: a fused program was carried over from another. "
            "Export under tt.fuse.backend('eager')."
        )
    return _registered[key]
