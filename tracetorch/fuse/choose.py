"""``plan_for``: which backend runs a layer, and the plan it runs."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.backends import chosen, settle, unsuited
from tracetorch.fuse.fingerprint import fingerprint, reads_nothing
from tracetorch.fuse.graph import Unfusable
from tracetorch.fuse.plan import Plan, planned, register
from tracetorch.fuse.trace import Program, trace
from tracetorch.snn.module import asked_once
from tracetorch.snn.neuron import Neuron

_programs: dict[Hashable, Program | str] = {}
_MANY = 1024


def program_of(
    layer: Neuron, ndim: int, dtype: torch.dtype, arguments: dict[str, Any] | None = None
) -> Program:
    """The program of a layer, traced once for all layers whose step does the same.

    Args:
        layer: whose ``step``.
        ndim: number of dimensions of the tensor of one step.
        dtype: of the arithmetic.
        arguments: what ``layer.arguments`` gave, where it is at hand.

    Raises:
        Unfusable: it cannot become a kernel.

    """
    if arguments is None:
        with torch.no_grad():
            arguments = layer.arguments(ndim, dtype)
    if inspect.ismethod(layer.step):
        raise Unfusable("its step is not a static method: what it reads of self stays unseen")
    told: list[Hashable] = [type(layer).__name__, ndim, dtype, layer.kept_states]
    told.append(fingerprint("step", layer.step))
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            _check_parameter(layer, name, value, ndim, dtype)
            told.append(name)
        elif value is None or type(value) is str:  # most are
            told.append((name, value))
        else:
            told.append((name, fingerprint(name, value)))
    key = tuple(told)
    found = _programs.get(key)
    if found is None:
        if len(_programs) >= _MANY:
            _programs.clear()
        try:
            found = trace(layer, ndim, dtype, arguments)
        except Unfusable as reason:
            found = str(reason)
        _programs[key] = found
    if isinstance(found, str):
        raise Unfusable(found)
    return found


def _check_parameter(
    layer: Neuron, name: str, value: Tensor, ndim: int, dtype: torch.dtype
) -> None:
    place = layer.dim if layer.dim < 0 else layer.dim - ndim
    shape = (*[1] * (ndim - value.ndim), *value.shape)
    fits = value.ndim <= ndim and all(
        size == 1 or (d - ndim == place and size == layer.num_neurons)
        for d, size in enumerate(shape)
    )
    if not fits or value.dtype != dtype:
        raise Unfusable(
            f"its argument {name!r} has shape {list(value.shape)} and {value.dtype}; kernels take "
            f"one value for the layer or one per neuron, in {dtype}"
        )


def lacks(name: str, program: Program) -> str | None:
    """The operation that a backend's printer does not know, as a reason."""
    if name != "triton":
        return None
    from tracetorch.fuse.triton import unknown

    found = unknown(program.graph)
    return None if found is None else f"its step uses {found}, which Triton kernels lack"


def plan_for(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor],
    tensors: dict[str, Tensor],
    arguments: dict[str, Any],
    record: tuple[str, ...],
) -> Plan | None:
    """The plan that runs ``layer`` over ``x``; ``None``: it runs eagerly.

    Raises:
        RuntimeError: the backend asked for by name cannot.

    """
    if chosen() == "eager":
        return None
    needs = _needs(x, states, tensors)
    return _plan(layer, x.ndim - 1, x.dtype, x.device, record, *needs, arguments)


def plan_key(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor],
    tensors: dict[str, Tensor],
    arguments: dict[str, Any],
    record: tuple[str, ...],
) -> str | None:
    """Inside ``torch.compile``: the key of :func:`plan_for`, a constant there."""
    if chosen() == "eager":
        return None
    told = _guarded(layer, arguments)
    if told is None:
        return None
    needs = _needs(x, states, tensors)
    return _constant_key(layer, x.ndim - 1, x.dtype, str(x.device), record, *needs, told)


def _needs(
    x: Tensor, states: Sequence[Tensor], tensors: dict[str, Tensor]
) -> tuple[bool, bool, tuple[str, ...]]:
    """Whether there will be a backward pass, through ``x`` too, and through which parameters."""
    if not torch.is_grad_enabled():
        return False, False, ()
    trained = tuple(name for name, p in tensors.items() if p.requires_grad)
    graph = bool(trained) or x.requires_grad or any(s.requires_grad for s in states)
    return graph, x.requires_grad, trained


def _guarded(layer: Neuron, arguments: dict[str, Any]) -> tuple[object, ...] | None:
    """The numbers a compiled region must be compiled anew for; ``None``: they cannot be seen."""
    told: list[object] = []
    surrogates = (type(value) for value in arguments.values() if isinstance(value, Surrogate))
    if not all(map(reads_nothing, (layer.step, *surrogates))):
        return None
    for value in arguments.values():
        if isinstance(value, Surrogate):
            held = [getattr(value, name) for name in type(value).__dataclass_fields__]
        elif value is None or isinstance(value, (bool, int, float, str)):
            held = [value]
        else:
            held = []
        # in hexadecimal, because a float itself is no constant to the compiler
        told += [part.hex() if isinstance(part, float) else part for part in held]
        if not held and not isinstance(value, (Surrogate, Tensor)):
            return None
    return tuple(told)


def _plan(
    layer: Neuron,
    ndim: int,
    dtype: torch.dtype,
    device: torch.device,
    record: tuple[str, ...],
    graph: bool,
    x: bool,
    trained: tuple[str, ...],
    arguments: dict[str, Any] | None = None,
) -> Plan | None:
    programs: list[Program] = []

    def against(name: str) -> str | None:
        reason = unsuited(name, device)
        if reason is None and name != "eager":
            try:
                programs.append(program_of(layer, ndim, dtype, arguments))
                reason = lacks(name, programs[-1])
            except Unfusable as found:
                reason = str(found)
        return reason

    backend = settle(layer, against, device)
    if backend == "eager":
        return None
    dim = layer.dim if layer.dim < 0 else layer.dim - ndim
    program = programs[-1]
    trained = tuple(name for name in trained if f"p_{name}" in program.reached)
    return planned(program, backend, dim, record, graph, x and "x" in program.reached, trained)


@asked_once
def _constant_key(
    layer: Neuron,
    ndim: int,
    dtype: torch.dtype,
    device: str,
    record: tuple[str, ...],
    graph: bool,
    x: bool,
    trained: tuple[str, ...],
    told: tuple[object, ...],
) -> str | None:
    """The same inside ``torch.compile``, asked once for each compilation and each ``told``."""
    plan = _plan(layer, ndim, dtype, torch.device(device), record, graph, x, trained)
    return None if plan is None else register(plan)
