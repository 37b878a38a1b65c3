"""``EdgePlan``: the edges of a sparse layer by source, as products by events read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tracetorch.fuse.runtime.sparse_segments import Edges


class EdgePlan(NamedTuple):
    """Edges sorted by source; those of one source stay in the order in which they were given.

    ``starts[source]`` is where the edges of a source begin in the other lists, and
    ``starts[source + 1]`` where they end. All are copies, so that no kernel reads what was written
    to a layer since they were checked.
    """

    order: Tensor  # place of each edge in the weights, ``[E]`` int32
    starts: Tensor  # ``[inputs + 1]`` int64
    targets: Tensor  # ``[E]`` int32
    delays: Tensor | None  # steps of each edge, ``[E]`` int32; ``None``: all edges have the same
    is_sorted: bool  # whether they were given so, and ``order`` counts up


def sorted_by_source(edges: Tensor, delays: Tensor | None, inputs: int) -> EdgePlan:
    """Return the plan of edges ``[2, E]`` that are in range."""
    sources, targets = edges
    counts = torch.bincount(sources, minlength=inputs)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    short = torch.int32
    if bool((sources[1:] >= sources[:-1]).all()):
        order = torch.arange(edges.shape[1], dtype=short, device=edges.device)
        by_source = targets.to(short, copy=True).contiguous()
        return EdgePlan(order, starts, by_source, _short(delays), True)
    order = sources.argsort(stable=True).to(short)
    by_source = targets.index_select(0, order).to(short)
    return EdgePlan(order, starts, by_source, _short(delays, order), False)


def edges_by_chunk(plan: EdgePlan, delay: Tensor | None, chunks: tuple[int, int]) -> Edges:
    """Return the edges of each source sorted by the chunk of the target, as a loop reads them.

    Those to one target stay in their order, so that its sums do. ``chunks`` are how many there are,
    and their neurons.
    """
    least = most = 0
    if delay is not None and delay.numel():
        least, most = (int(found) for found in torch.aminmax(delay))
    order = None if plan.is_sorted else plan.order
    starts, targets, delays = plan.starts, plan.targets, plan.delays
    count, per_chunk = chunks
    if count > 1:
        sources = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
        keys = sources.mul_(count).add_(targets // per_chunk)
        counts = torch.bincount(keys, minlength=(len(starts) - 1) * count)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        if not bool((keys[1:] >= keys[:-1]).all()):
            place = keys.argsort(stable=True)
            targets = targets.index_select(0, place)
            delays = None if delays is None else delays.index_select(0, place)
            order = plan.order.index_select(0, place)
    if least == most:
        delays = None
    return Edges(starts, targets, delays, order, least, most)


def _short(delays: Tensor | None, order: Tensor | None = None) -> Tensor | None:
    if delays is None:
        return None
    ordered = delays.clone() if order is None else delays.index_select(0, order)
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
