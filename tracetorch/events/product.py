"""List events, make products with them part of autograd's graph, and compute a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.torch_private import has_values
from tracetorch.events import kernels
from tracetorch.events.kernels import LANES
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.threads import run_written, shared_out

_LEAST_LISTED = 32  # rows of a task that lists events
_LEAST_ROWS = 64  # of a task
_LEAST_INPUTS = 16  # of a task of the weight gradient, each of which reads the output's gradients
ROWS_PER_CHUNK = 1024  # whose output gradients stay in cache, 128 columns at a time
# operations on one value that take as long
_SCANNED = 2  # as to scan a value
_LISTED = 32  # as to list an event
_SAMPLED_ROWS = 16
_STRIDE = 2_654_435_761  # of sampled rows, so that they are of all steps and all samples


class EventLists(NamedTuple):
    """The events of a matrix by row; NaN and infinity are events too."""

    columns: int  # of the matrix
    starts: Tensor  # where the list of each row begins, and where the last one ends
    indices: Tensor  # columns of the events
    values: Tensor  # their values; empty where all are 1

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return len(self.starts) - 1

    @property
    def weighted(self) -> bool:
        """Whether some value is not 1."""
        return len(self.values) > 0


def sampled_density(matrix: Tensor) -> float:
    """Estimate the share of events from a few rows."""
    array = matrix.detach().numpy()
    rows = len(array)
    if rows > _SAMPLED_ROWS:
        array = array[np.arange(_SAMPLED_ROWS) * _STRIDE % rows]
    return float(np.count_nonzero(array)) / array.size


def list_events(matrix: Tensor, limit: float) -> tuple[EventLists | None, float]:
    """Return the events of a contiguous matrix, ``None`` above a limit, and their share."""
    rows, columns = matrix.shape
    dtype, size = matrix.dtype, matrix.numel()
    per_task, tasks = shared_out(rows, _LEAST_LISTED)
    shape = (per_task, rows, columns)
    masks = torch.empty(rows * -(-columns // 16), dtype=torch.uint16, device="cpu")
    starts = torch.zeros(rows + 1, dtype=torch.int64, device="cpu")
    others = torch.zeros(1, dtype=torch.int64, device="cpu")  # whether a value is not 1
    scanned = (*shape, matrix, masks, starts[1:], others)
    run_written(kernels.scan, "iiirhll", dtype, tasks, *scanned, work=_SCANNED * size)
    starts.cumsum_(0)
    count = int(starts[-1])
    density = count / size
    if density > limit:
        return None, density
    weighted = bool(others)
    indices = torch.empty(count, dtype=torch.int32, device="cpu")
    values = torch.empty(count if weighted else 0, dtype=dtype, device="cpu")
    arguments = (*shape, matrix, masks, starts, indices, values, weighted)
    work = size // 16 + _LISTED * count
    run_written(kernels.fill, "iiirhlnri", dtype, tasks, *arguments, work=work)
    return EventLists(columns, starts, indices, values), density


def by_column(events: EventLists, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the events by column, in each chunk of rows.

    Return where the list of each column of each chunk ends, and the next one begins; the rows of
    the events; and their values, none where all are 1.
    """
    rows, columns = events.rows, events.columns
    ends = torch.empty(chunks * (columns + 1), dtype=torch.int64, device="cpu")
    sources, scales = torch.empty_like(events.indices), torch.empty_like(events.values)
    sizes = (ROWS_PER_CHUNK, rows, columns)
    arguments = (*sizes, *events[1:], events.weighted, ends, sources, scales)
    work = _LISTED * len(sources)
    run_written(kernels.sort, "iiilnrilnr", scales.dtype, chunks, *arguments, work=work)
    return ends, sources, scales


class ProductKind(NamedTuple):
    """A kind of product, linear or convolved. ``at`` is what else it is computed by."""

    # ``(x, weight, bias, events, at)``, the output
    forward: Callable[[Tensor, Tensor, Tensor | None, EventLists, Any], Tensor]
    # ``(grad, weight, shape of x, at)``, the gradient of ``x``
    by_input: Callable[[Tensor, Tensor, torch.Size, Any], Tensor]
    # ``(grad, events, shape of x, shape of the weight, at)``, that of the weight
    by_weight: Callable[[Tensor, EventLists, torch.Size, torch.Size, Any], Tensor]
    by_bias: Callable[[Tensor], Tensor]  # ``(grad)``, that of the bias


def product(
    kind: ProductKind,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    events: EventLists,
    at: Any = None,
) -> Tensor:
    """Return a product by the events of ``x``, a node of the graph where there is one."""
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        y: Tensor = _ByEvents.apply(kind, x, weight, bias, events, at)  # type: ignore[no-untyped-call]
        return y
    return kind.forward(x, weight, bias, events, at)


class _ByEvents(torch.autograd.Function):
    """Keeps the events for the weight's gradient, and the weight for that of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: ProductKind,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        events: EventLists,
        at: Any,
    ) -> Tensor:
        _, needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            weight if needs_input else None, *(events[1:] if needs_weight else ())
        )
        ctx.kind, ctx.at, ctx.columns = kind, at, events.columns
        ctx.shapes = x.shape, weight.shape
        ctx.set_materialize_grads(False)
        return kind.forward(x, weight, bias, events, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        weight, *lists = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a product with events has no second derivative. Run what needs one under "
                "tt.events.mode('never')."
            )
        if lists and not has_values(grad):  # of is_grads_batched
            raise RuntimeError(
                "a product with events takes one incoming gradient at a time. Run what needs a "
                "batch of them under tt.events.mode('never')."
            )
        kind: ProductKind = ctx.kind
        d_x = d_weight = None
        if weight is not None:
            d_x = kind.by_input(grad, weight, ctx.shapes[0], ctx.at)
        if lists:
            events = EventLists(ctx.columns, *lists)
            shape, weight_shape = ctx.shapes
            d_weight = kind.by_weight(grad.resolve_neg(), events, shape, weight_shape, ctx.at)
        d_bias = kind.by_bias(grad) if ctx.needs_input_grad[3] else None
        return None, d_x, d_weight, d_bias, None, None


def full_vectors(matrix: Tensor) -> Tensor:
    """Return a contiguous matrix whose rows are full vectors, a copy where they are not."""
    rows, columns = matrix.shape
    if columns % LANES == 0:
        return matrix.contiguous()
    wide = matrix.new_zeros(rows, -(-columns // LANES) * LANES)
    wide[:, :columns] = matrix
    return wide


def first_sums(table: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the sums of rows of a table start from: the bias, or zeros."""
    start = table.new_zeros(table.shape[-1])
    if bias is not None:
        start[: len(bias)] = bias.detach()
    return start


def _copied(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: None
) -> Tensor:
    outputs, rows = len(weight), events.rows
    table = full_vectors(weight.detach().t())
    width = table.shape[1]
    y = large_empty((rows, width), x.dtype)
    per_task, tasks = shared_out(rows, _LEAST_ROWS)
    arguments = (*events[1:], events.weighted, table, first_sums(table, bias), width, y)
    work = (len(events.indices) + rows) * width
    run_written(
        kernels.forward, "iilnrirrir", x.dtype, tasks, per_task, rows, *arguments, work=work
    )
    if width != outputs:
        y = _copied(y[:, :outputs])
    # no view of another tensor, which nobody behind the layer could change in place
    return y.view(*x.shape[:-1], outputs).detach()


def _by_weight(
    grad: Tensor, events: EventLists, shape: torch.Size, weight: torch.Size, at: None
) -> Tensor:
    table = full_vectors(grad.flatten(0, -2))
    chunks, width, columns = -(-events.rows // ROWS_PER_CHUNK), table.shape[1], events.columns
    total = table.new_zeros((columns, width))
    per_task, tasks = shared_out(columns, _LEAST_INPUTS)
    sizes = (per_task, columns, chunks, ROWS_PER_CHUNK)
    lists = (events.starts, *by_column(events, chunks), events.weighted)
    arguments = (*sizes, *lists, table, width, total)
    work = (len(events.indices) + events.rows) * width
    run_written(kernels.backward, "iiiillnririr", table.dtype, tasks, *arguments, work=work)
    return _copied(total[:, : weight[0]].t())


LINEAR = ProductKind(
    _forward,
    lambda grad, weight, shape, at: grad @ weight,
    _by_weight,
    lambda grad: grad.flatten(0, -2).sum(0),
)
"""``x`` is ``[..., in]``, the weight ``[out, in]``; events are those of ``x`` as ``[rows, in]``."""
