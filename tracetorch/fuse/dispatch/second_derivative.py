"""Compute differentiable gradients, for `create_graph=True`: run a sequence again, eagerly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.fuse.dispatch.backends import report_fallback
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime import eager
from tracetorch.fuse.runtime.backend import Operands

_REASON = "compiled steps have no second derivative, which create_graph=True needs"


class Call(NamedTuple):
    """A cell and the step kwargs, kept to run a sequence a second time.

    Not the layer itself: it holds states, whose graph holds this, and would never be freed.
    """

    cell: Cell
    kwargs: dict[str, Any]


def differentiable_gradients(
    call: Call,
    plan: Plan,
    given: Operands,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradients of inputs, states and parameters, part of a graph of their own.

    Raises:
        RuntimeError: the backend requested by name cannot.
    """
    program = plan.program
    report_fallback(str(call.cell.call), plan.backend, _REASON)
    with torch.enable_grad():
        # Views: where one of the inputs is computed from another, the path between them is not
        # this sequence's to differentiate.
        tensors = [
            tensor.view_as(tensor) for tensor in (*given.inputs, *given.states, *given.params)
        ]
        again, rest = tensors[: len(given.inputs)], tensors[len(given.inputs) :]
        starts = dict(zip(program.states, rest, strict=False))
        replaced = dict(zip(program.params, rest[len(starts) :], strict=True))
        replaced = {n: value for n, value in replaced.items() if n not in program.constants}
        output, ends, records = eager.run(
            call.cell,
            again,
            [starts.get(name) for name in call.cell.states],
            {**call.kwargs, **replaced},
            plan.record,
        )
        pairs = [
            (end, grad)
            for end, grad in zip((output, *ends, *records), grads, strict=True)
            if grad is not None and end.requires_grad
        ]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs and wanted:
            results, cotangents = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                results, wanted, cotangents, create_graph=True, allow_unused=True
            )
    gradients = iter(found)
    return [next(gradients) if tensor.requires_grad else None for tensor in tensors]
