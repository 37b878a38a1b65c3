"""Run a layer's ``step`` over a whole sequence, by a compiled loop or step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition, StepLayer
from tracetorch.fuse.dispatch import operators
from tracetorch.fuse.dispatch.backends import backend_named, canonical_name
from tracetorch.fuse.dispatch.plans import plan_for, plan_key, program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.runtime import eager
from tracetorch.fuse.runtime.backend import Operands

_NEEDED = [name for name in vars(StepLayer) if not name.startswith("_") and name != "cell"]


def run_sequence(
    layer: StepLayer,
    cell: Cell | StepDefinition,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    record: tuple[str, ...],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Return outputs, final states and recorded trajectories; nothing is kept on the layer.

    The ``inputs`` are ``[T, ...]``, of one shape, in the dtype of the arithmetic; T is not 0.
    Inside ``torch.compile`` the ``cell`` is the signature of its step.
    """
    active = [state for state in states if state is not None]
    results: Sequence[Tensor] | None = None
    if isinstance(cell, StepDefinition):
        key = plan_key(layer, cell, inputs, active, kwargs, record)
        if key is not None:
            parameters = [value for value in kwargs.values() if isinstance(value, Tensor)]
            results = torch.ops.tracetorch.forward(key, inputs, active, parameters)[:-1]
    else:
        plan = plan_for(cell, inputs, active, kwargs, record)
        if plan is not None:
            given = Operands(inputs, active, plan.program.tensors(kwargs))
            results = operators.run(plan, given)
    if results is None:
        return eager.run(cell, inputs, states, kwargs, record)
    last = 1 + len(active)
    return results[0], results[1:last], results[last:]


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
    name = canonical_name(name)
    if name in ("auto", "eager"):
        return None
    backend = backend_named(name)
    if (reason := backend.unavailable_reason(x.device)) is not None:
        return reason
    try:
        with torch.no_grad():
            kwargs = layer.step_kwargs(x.ndim - 1, dtype)
        program = program_of(layer.cell, x.ndim - 1, dtype, kwargs, x.device)
    except Unfusable as unfusable:
        return str(unfusable)
    return backend.unsupported_reason(program, x.device)
