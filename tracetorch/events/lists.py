"""List the events of a matrix, the values that are not 0, by row and by column: ``EventLists``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.events.compiled import kernel
from tracetorch.fuse.runtime.threads import parallel_for

_ROWS_PER_TASK = 32
_ROWS_PER_CHUNK = 1024  # whose output gradients stay in cache, 128 columns at a time
_SMALL = 200_000  # values that one thread scans sooner alone
_SAMPLED_ROWS = 16
_STRIDE = 2_654_435_761  # of sampled rows, so that they are of all steps and all samples


class EventLists(NamedTuple):
    """The events of a matrix by row; NaN and infinity are events too.

    Args:
        columns: of the matrix.
        starts: where the list of each row begins, and where the last one ends.
        indices: columns of the events.
        values: their values; empty where all are 1.
    """

    columns: int
    starts: Tensor
    indices: Tensor
    values: Tensor

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return len(self.starts) - 1


class ColumnLists(NamedTuple):
    """The events of a matrix by column, for each chunk of rows.

    Args:
        ends: where the list of each column of each chunk ends, and the next one begins.
        sources: rows of the events.
        scales: their values; empty where all are 1.
        chunks: how many there are.
        per_chunk: rows of a chunk.
    """

    ends: Any
    sources: Any
    scales: Any
    chunks: int
    per_chunk: int


def sampled_density(matrix: Tensor) -> float:
    """Estimate the share of events from a few rows."""
    array = matrix.detach().numpy()
    rows = len(array)
    if rows > _SAMPLED_ROWS:
        array = array[np.arange(_SAMPLED_ROWS) * _STRIDE % rows]
    return float(np.count_nonzero(array)) / array.size


def list_events(matrix: Tensor, limit: float) -> tuple[EventLists | None, float]:
    """Return the events of a contiguous matrix and their share, exactly.

    Args:
        matrix: float32 or float64, on the CPU.
        limit: largest share of events of which lists are made; ``None`` is returned above it.
    """
    rows, columns = matrix.shape
    dtype, values = matrix.dtype, matrix.detach().numpy().reshape(-1)
    masks = np.empty(rows * (-(-columns // 16)), np.uint16)
    starts = np.zeros(rows + 1, np.int64)
    scan = kernel("scan", dtype)
    tasks, small = -(-rows // _ROWS_PER_TASK), matrix.numel() < _SMALL

    def mark(first: int, last: int) -> None:
        scan(*_range(first, last, rows), columns, values, masks, starts[1:])

    parallel_for(mark, tasks, small=small)
    np.cumsum(starts, out=starts)
    count = int(starts[-1])
    density = count / matrix.numel()
    if density > limit:
        return None, density
    indices = np.empty(count, np.int32)
    found = np.empty(count, values.dtype)
    weighted = np.zeros(1, np.int64)
    fill = kernel("fill", dtype)

    def write(first: int, last: int) -> None:
        fill(*_range(first, last, rows), columns, values, masks, starts, indices, found, weighted)

    parallel_for(write, tasks, small=small)
    if not weighted[0]:
        found = np.empty(0, values.dtype)
    lists = (torch.from_numpy(array) for array in (starts, indices, found))
    return EventLists(columns, *lists), density


def _range(first: int, last: int, rows: int) -> tuple[int, int]:
    """Return the rows of some tasks."""
    return first * _ROWS_PER_TASK, min(rows, last * _ROWS_PER_TASK)


def by_column(events: EventLists) -> ColumnLists:
    """Sort the events by column, chunk by chunk of rows."""
    rows, columns = events.rows, events.columns
    starts, indices, values = (part.numpy() for part in events[1:])
    chunks = -(-rows // _ROWS_PER_CHUNK)
    ends = np.empty(chunks * (columns + 1), np.int64)
    sources, scales = np.empty_like(indices), np.empty_like(values)
    sort = kernel("sort", events.values.dtype)
    shape = (rows, _ROWS_PER_CHUNK, columns)

    def run(first: int, last: int) -> None:
        sort(first, last, *shape, starts, indices, values, ends, sources, scales)

    parallel_for(run, chunks, small=len(indices) < _SMALL)
    return ColumnLists(ends, sources, scales, chunks, _ROWS_PER_CHUNK)
