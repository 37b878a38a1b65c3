"""Compute a linear layer with the events of its input, forward and backward: ``LINEAR``."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.events.compiled import first_sums, full_vectors, run, shared_out
from tracetorch.events.lists import EventLists, by_column
from tracetorch.events.node import ProductKind
from tracetorch.fuse.runtime.allocation import large_empty

_LEAST_ROWS = 64  # of a task
_LEAST_INPUTS = 16  # of a task of the weight gradient, each of which reads the output's gradients


def sum_rows(
    y: Tensor,
    table: Tensor,
    bias: Tensor | None,
    events: EventLists,
    indices: Tensor,
    delays: tuple[int, int, int],
) -> None:
    """Write the bias, and rows of the transposed weights by event, at a sample's ``delays``."""
    width = table.shape[-1]
    rows = y.numel() // width
    per_task, tasks = shared_out(rows, _LEAST_ROWS)
    run(
        "forward",
        y.dtype,
        tasks,
        *(per_task, rows, *delays, events.starts, indices, events.values, events.weighted),
        *(table, first_sums(table, bias), width, y),
        work=(delays[1] + 1) * (len(indices) + events.rows) * width,
    )


def add_rows(total: Tensor, table: Tensor, events: EventLists, reach: int = 0) -> None:
    """Add to ``[reach + 1, in, width]``, the weights' gradient, rows of the output's, by event."""
    lists, width, columns = by_column(events), table.shape[-1], events.columns
    per_task, tasks = shared_out(columns, _LEAST_INPUTS)
    run(
        "backward",
        table.dtype,
        tasks,
        *(per_task, columns, lists.chunks, lists.per_chunk, reach, events.starts, lists.ends),
        *(lists.sources, lists.scales, events.weighted, table, width, total),
        work=(reach + 1) * (len(events.indices) + events.rows) * width,
    )


def _copied(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: None
) -> Tensor:
    outputs, rows = len(weight), events.rows
    table = full_vectors(weight.detach().t())
    y = large_empty((rows, table.shape[1]), x.dtype)
    # without delays all rows are steps of one sample
    sum_rows(y, table, bias, events, events.indices, (rows, 0, 0))
    if y.shape[1] != outputs:
        y = _copied(y[:, :outputs])
    # no view of another tensor, which nobody behind the layer could change in place
    return y.view(*x.shape[:-1], outputs).detach()


def _by_weight(
    grad: Tensor, events: EventLists, shape: torch.Size, weight: torch.Size, at: None
) -> Tensor:
    table = full_vectors(grad.flatten(0, -2))
    total = table.new_zeros((events.columns, table.shape[1]))
    add_rows(total, table, events)
    return _copied(total[:, : weight[0]].t())


LINEAR = ProductKind(
    _forward,
    lambda grad, weight, shape, at: grad @ weight,
    _by_weight,
    lambda grad: grad.flatten(0, -2).sum(0),
)
"""``x`` is ``[..., in]``, the weight ``[out, in]``; events are those of ``x`` as ``[rows, in]``."""
