"""Compute a linear layer with the events of its input, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracetorch.events.compiled import run, shared_out
from tracetorch.events.kernels import LANES
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
    trained = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained and torch.is_grad_enabled():
        y: Tensor = _Linear.apply(x, weight, bias, events)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, weight, bias, events)


def padded(matrix: Tensor) -> Tensor:
    """Return a contiguous copy of a matrix, its rows filled up to full vectors."""
    rows, columns = matrix.shape
    width = -(-columns // LANES) * LANES
    table = matrix.new_empty if width == columns else matrix.new_zeros
    padded = table((rows, width))
    padded[:, :columns] = matrix
    return padded


def _copied(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists) -> Tensor:
    outputs = len(weight)
    table = padded(weight.detach().t())
    width = table.shape[1]
    start = table.new_zeros(width)
    if bias is not None:
        start[:outputs] = bias.detach()
    rows = events.rows
    y = large_empty((rows, width), x.dtype)
    per_task, tasks = shared_out(rows, LEAST_ROWS)
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
    table = grad.contiguous() if outputs % LANES == 0 else padded(grad)
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
