"""``EdgePlan``: the edges of a sparse layer by source, as products by events read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EdgePlan(NamedTuple):
    """Edges sorted by source; those of one source stay in the order in which they were given.

    ``starts[source]`` is where the edges of a source begin in the other lists, and
    ``starts[source + 1]`` where they end.
    """

    order: Tensor
    """Place of each edge in the weights, ``[E]`` int32."""
    starts: Tensor
    """``[inputs + 1]`` int64."""
    targets: Tensor
    """``[E]`` int32."""
    delays: Tensor | None
    """Steps of each edge, ``[E]`` int32; ``None``: all edges have the same."""
    is_sorted: bool
    """Whether they were given so, and ``order`` counts up."""


def sorted_by_source(edges: Tensor, delays: Tensor | None, inputs: int) -> EdgePlan:
    """Return the plan of edges ``[2, E]`` that are in range.

    Args:
        edges: sources and targets.
        delays: one for each edge, or ``None``.
        inputs: how many sources there are.
    """
    sources, targets = edges
    counts = torch.bincount(sources, minlength=inputs)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    short = torch.int32
    if bool((sources[1:] >= sources[:-1]).all()):
        order = torch.arange(edges.shape[1], dtype=short, device=edges.device)
        return EdgePlan(order, starts, targets.to(short).contiguous(), _short(delays), True)
    order = sources.argsort(stable=True).to(short)
    by_source = targets.index_select(0, order).to(short)
    return EdgePlan(order, starts, by_source, _short(delays, order), False)


def _short(delays: Tensor | None, order: Tensor | None = None) -> Tensor | None:
    if delays is None:
        return None
    ordered = delays if order is None else delays.index_select(0, order)
    return ordered.to(torch.int32).contiguous()


def check_range(edges: Tensor, inputs: int, outputs: int) -> str | None:
    """Return what is wrong with edges ``[2, E]`` that lead out of a layer, or ``None``."""
    if edges.shape[1] == 0:
        return None
    low, high = (found.tolist() for found in torch.aminmax(edges, dim=1))
    for row, (name, size) in enumerate((("source", inputs), ("target", outputs))):
        if low[row] < 0 or high[row] >= size:
            bad = low[row] if low[row] < 0 else high[row]
            edge = int((edges[row] == bad).nonzero()[0])
            return f"edge {edge} has the {name} {bad}, and there are {size}, 0 to {size - 1}"
    return None
