"""Compute a linear layer with the events of its input, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracetorch.events.compiled import first_sums, full_vectors, in_graph, run, shared_out
from tracetorch.events.lists import EventLists, by_column, save_operands, saved_operands
from tracetorch.fuse.runtime.memory import large_empty

LEAST_ROWS = 64  # of a task
LEAST_INPUTS = 16  # of a task of the weight gradient, each of which reads the output's gradients


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists) -> Tensor:
    """Return ``x @ weight.T + bias``, part of the graph, by the events of ``x``.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
        events: the events of ``x`` as a matrix ``[rows, in]``.
    """
    if in_graph(x, weight, bias):
        y: Tensor = _Linear.apply(x, weight, bias, events)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, weight, bias, events)


def _copied(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists) -> Tensor:
    outputs = len(weight)
    table = full_vectors(weight.detach().t())
    width, rows = table.shape[1], events.rows
    y = large_empty((rows, width), x.dtype)
    per_task, tasks = shared_out(rows, LEAST_ROWS)
    start = first_sums(table, bias)
    # without delays all rows are steps of one sample
    arguments = (rows, rows, 0, 0, *events[1:], events.weighted, table, start, width, y)
    run("forward", x.dtype, tasks, per_task, *arguments, work=additions(events, width))
    if width != outputs:
        y = _copied(y[:, :outputs])
    # no view of another tensor, which nobody behind the layer could change in place
    return y.view(*x.shape[:-1], outputs).detach()


def _weight_gradient(grad: Tensor, events: EventLists) -> Tensor:
    """Return the gradient ``[out, in]`` for the gradient ``[rows, out]`` of the output."""
    outputs = grad.shape[1]
    table = full_vectors(grad)
    width, columns = table.shape[1], events.columns
    lists = by_column(events)
    total = table.new_zeros((columns, width))
    per_task, tasks = shared_out(columns, LEAST_INPUTS)
    arguments = (
        *(per_task, columns, lists.chunks, lists.per_chunk, 0, events.starts),
        *(lists.ends, lists.sources, lists.scales, events.weighted, table, width, total),
    )
    run("backward", grad.dtype, tasks, *arguments, work=additions(events, width))
    return _copied(total[:, :outputs].t())


def additions(events: EventLists, width: int) -> int:
    """Return how many values a kernel adds, or writes."""
    return (len(events.indices) + events.rows) * width


class _Linear(torch.autograd.Function):
    """Node that keeps the events of its input, and the weight where the input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists
    ) -> Tensor:
        save_operands(ctx, weight, events)
        return _forward(x, weight, bias, events)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, events = saved_operands(ctx, grad)
        flat = grad.flatten(0, -2)
        return (
            None if weight is None else grad @ weight,
            None if events is None else _weight_gradient(flat.resolve_neg(), events),
            flat.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
