"""List the events of a matrix, the values that are not 0, by row and by column: ``EventLists``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.events import kernels
from tracetorch.fuse.runtime.threads import run_written, shared_out

_LEAST_ROWS = 32  # of a task
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
    per_task, tasks = shared_out(rows, _LEAST_ROWS)
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
