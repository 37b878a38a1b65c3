"""Print a product of integers most of whose weights are zero: those that are not, and where.

A layer with a delay for each synapse is a product with the inputs of all steps that it keeps, in
which every synapse has one weight that is not zero; a masked layer has few connections. In floats
such a product is dense: an infinite input times a weight of zero is NaN, in PyTorch too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.export.c_code.printer import Names, ProductPrinter
from tracetorch.export.c_code.stages import Array, Product, Role
from tracetorch.integers.width import stored_bits


@dataclass(frozen=True)
class SparseWeights:
    """Weights without zeros, row by row: of each input where events drive it, else output."""

    values: Array  # the weights
    places: Array  # the column of each
    starts: Array  # where each row begins, and the last one ends


def sparse_weights(stage: Product, by_event: bool) -> SparseWeights | None:
    """Return the weights of a linear product of integers without zeros, if they are smaller so."""
    places = (*stage.source.shape[1:], *stage.target.shape[1:], *stage.weight.shape[2:])
    if stage.groups != 1 or any(size != 1 for size in places) or any(stage.padding):
        return None
    matrix = stage.weight[:, :, 0, 0].t() if by_event else stage.weight[:, :, 0, 0]
    matrix = matrix.contiguous()
    row, column = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(matrix))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    parts = (matrix[row, column], column.double(), starts.double())
    found = SparseWeights(*(constant_table("sparse", each) for each in parts))
    if not found.values.size:
        return None
    width = 0.5 if fits_nibble(matrix) else table_bits(matrix) / 8
    size = width * found.values.size
    for each in (found.places, found.starts):
        size += table_bits(each.values, signed=False) / 8 * each.size
    return found if size < width * matrix.numel() else None


def fits_nibble(values: Tensor) -> bool:
    """Whether integers fit four bits."""
    return not bool(((values < -8) | (values > 7)).any())


def table_bits(values: Tensor, *, signed: bool = True) -> int:
    """Return the width of the type in which a table of integers lies in memory."""
    return stored_bits(float(values.min()), float(values.max()), signed=signed)


def constant_table(label: str, values: Tensor) -> Array:
    """Return a table of values in the order of their places."""
    values = values.detach().contiguous().clone()
    return Array(Role.TABLE, label, values.numel(), False, values)


class SparsePrinter(ProductPrinter):
    """Print a product by the weights that are not zero."""

    def __init__(
        self, names: Names, stage: Product, weights: SparseWeights, bias: Array | None, events: bool
    ) -> None:
        super().__init__(names, stage, weights.values, bias, events)
        self.weights = weights

    @contextmanager
    def _row(self, row: str) -> Iterator[tuple[str, str]]:
        """Open a loop over the weights of a row; yield a weight and its column."""
        begin, end = (self.names.at(self.weights.starts, each) for each in (row, f"{row} + 1"))
        with self.counting("k", begin, end):
            yield self.names.at(self.weights.values, "k"), self.names.at(self.weights.places, "k")

    def spread(self, indices: Sequence[str]) -> None:
        """Append the lines that add the weights of an event at a place of the source."""
        with self._row(indices[0]) as (weight, place):
            self.add(self.at(self.product_stage.target, [place, "0", "0"]), weight)

    def gather(self, place: Sequence[str]) -> None:
        """Append the lines that add the products of one output."""
        with self._row(place[0]) as (weight, column):
            source = self.at(self.product_stage.source, [column, "0", "0"])
            self.line(f"sum += {self.widened(weight)} * {source};")
