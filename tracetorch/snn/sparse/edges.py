"""Draw edges for a sparse layer: by probability, in-degree, distance, populations; none dense.

Time and memory go by the edges that there will be. All builders return edges sorted by source, as
products read them fastest. Neither numbers nor order depend on the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tracetorch.core.checks import check_integer, check_positive, check_share
from tracetorch.snn.masks import check_positions, check_sizes, checked_probabilities, describe_drawn

_DRAWN = 1 << 22  # numbers at a time
_PAIRS = 1 << 18  # pairs of neighbours at a time, which stay in cache
_GRID = 3  # dimensions of the grid in which neighbours are found
_FINER = 2  # cells along a radius: finer ones hold fewer pairs that are too far


@describe_drawn
def random_edges(
    outputs: int,
    inputs: int,
    probability: float,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges, each of which is there with a fixed probability (Erdos-Renyi).

    As :func:`random_mask`, but without a mask: the gaps from one edge to the next are drawn.

    Returns:
        Integers ``[2, E]``, for :class:`SparseLinear`.

    Example:
        >>> edges = random_edges(1000, 500, 0.02, generator=torch.Generator().manual_seed(0))
        >>> 9_600 < edges.shape[1] < 10_400, bool((edges[0].diff() >= 0).all())
        (True, True)
    """
    check_sizes(outputs, inputs, self_connections)
    if inputs * outputs >= 2**53:
        raise ValueError(
            f"fewer than 2**53 pairs can be drawn from, got {inputs} inputs and {outputs} outputs. "
            "Draw parts, and join them by torch.cat."
        )
    places = _drawn_places(inputs * outputs, check_share("probability", probability), generator)
    sources = places // outputs
    edges = torch.stack([sources, places - sources * outputs])
    return edges if self_connections else edges[:, edges[0] != edges[1]]


@describe_drawn
def in_degree_edges(
    outputs: int,
    inputs: int,
    degree: int,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges such that every output has the same number of inputs (fixed in-degree).

    As :func:`in_degree_mask`, but without a mask.

    Returns:
        Integers ``[2, E]``, for :class:`SparseLinear`.

    Example:
        >>> in_degree_edges(3, 100, 10)[1].bincount().tolist()
        [10, 10, 10]
    """
    check_sizes(outputs, inputs, self_connections)
    most = inputs - (not self_connections)
    if not 0 <= check_integer("degree", degree) <= most:
        raise ValueError(f"degree must be 0 to {most}, the number of inputs, got {degree}.")
    if degree > most // 2:  # those that are not there are drawn
        absent = _distinct(outputs, most, most - degree, generator)
        chosen = _others(absent, most)
    else:
        chosen = _distinct(outputs, most, degree, generator)
    targets = torch.arange(outputs, device=chosen.device).unsqueeze(1)
    if not self_connections:  # the inputs are numbered without the output itself
        chosen += chosen >= targets
    edges = torch.stack([chosen.flatten(), targets.expand_as(chosen).flatten()])
    return _by_source(edges, outputs)


@describe_drawn
def distance_edges(
    outputs: Tensor,
    inputs: Tensor,
    kernel: Callable[[Tensor], Tensor],
    *,
    radius: float,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges, each of which is there with a probability that its length sets.

    As :func:`distance_mask`, but pairs further apart than ``radius`` are never looked at: time goes
    by the pairs that are nearer, which are found in a grid.

    Args:
        outputs: positions of the neurons behind the connection, ``[outputs, D]``.
        inputs: positions of those before it, ``[inputs, D]``.
        kernel: a function of distances ``[n]``, in the unit of the positions, that returns
            probabilities in [0, 1]: ``lambda d: torch.exp(-d / 0.2)``.
        radius: positive; no edge is longer.

    Returns:
        Integers ``[2, E]``, for :class:`SparseLinear`.

    Example:
        >>> line = torch.arange(4.0)[:, None]
        >>> distance_edges(line, line, torch.ones_like, radius=1.0).tolist()
        [[0, 0, 1, 1, 1, 2, 2, 2, 3, 3], [0, 1, 0, 1, 2, 1, 2, 3, 2, 3]]
    """
    check_positions(outputs, inputs, kernel)
    check_sizes(len(outputs), len(inputs), self_connections)
    radius = check_positive("radius", radius)
    if not bool(outputs.isfinite().all() and inputs.isfinite().all()):
        raise ValueError("positions must be finite, got infinite values or NaN.")
    inputs, outputs = inputs.detach(), outputs.detach()
    found = [torch.zeros(2, 0, dtype=torch.int64, device=inputs.device)]
    for sources, targets in _near_pairs(inputs, outputs, radius):
        squares = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        for of_input, of_output in zip(inputs.unbind(1), outputs.unbind(1), strict=True):
            along = of_input.index_select(0, sources).sub_(of_output.index_select(0, targets))
            squares = squares + along.square_()
        length = squares.sqrt()
        is_near = length <= radius
        if not self_connections:
            is_near &= sources != targets
        near = is_near.nonzero().squeeze(1)
        sources, targets = sources.index_select(0, near), targets.index_select(0, near)
        probability = checked_probabilities(kernel, length.index_select(0, near))
        device = None if generator is None else generator.device
        drawn = torch.rand(len(sources), generator=generator, device=device)
        there = drawn.to(probability.device) < probability
        found.append(torch.stack([sources[there], targets[there]]))
    return _by_source(torch.cat(found, 1), len(outputs))


@describe_drawn
def population_edges(
    outputs: Sequence[int],
    inputs: Sequence[int],
    probability: Sequence[Sequence[float]] | Tensor,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges between populations, with a fixed probability for each pair of populations.

    Neurons are numbered population by population.

    Args:
        outputs: sizes of the populations behind the connection.
        inputs: sizes of those before it.
        probability: ``probability[i][j]`` is that of an edge from population ``j`` to population
            ``i``.

    Returns:
        Integers ``[2, E]``, for :class:`SparseLinear`.

    Example:
        >>> edges = population_edges([3, 2], [3, 2], [[0, 1], [1, 0]])
        >>> edges.tolist()
        [[0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4], [3, 4, 3, 4, 3, 4, 0, 1, 2, 0, 1, 2]]
    """
    values = probability.tolist() if isinstance(probability, Tensor) else probability
    if [len(row) for row in values] != [len(inputs)] * len(outputs):
        raise ValueError(
            f"probability must be {len(outputs)} rows, one for each population of outputs, of "
            f"{len(inputs)} values, one for each of inputs."
        )
    check_sizes(sum(outputs), sum(inputs), self_connections)
    starts = [list(itertools.accumulate(sizes, initial=0)) for sizes in (inputs, outputs)]
    parts = []
    for j, from_size in enumerate(inputs):
        for i, to_size in enumerate(outputs):
            part = random_edges(to_size, from_size, values[i][j], generator=generator)
            part += part.new_tensor([[starts[0][j]], [starts[1][i]]])
            parts.append(part)
    edges = _by_source(torch.cat(parts, 1), sum(outputs))
    return edges if self_connections else edges[:, edges[0] != edges[1]]


def _drawn_places(count: int, probability: float, generator: torch.Generator | None) -> Tensor:
    """Draw each of ``count`` places with a probability; return them in order."""
    device = None if generator is None else generator.device
    if probability == 1:
        return torch.arange(count, device=device)
    parts: list[Tensor] = []
    last = -1
    while probability > 0 and last < count - 1:
        expected = (count - 1 - last) * probability
        number = min(_DRAWN, math.ceil(expected + 4 * math.sqrt(expected) + 8))
        # the gap from one to the next is geometric: the whole part of an exponential one
        gaps = torch.empty(number, dtype=torch.float64, device=device)
        gaps.exponential_(-math.log1p(-probability), generator=generator)
        places = gaps.floor_().add_(1).cumsum(0).add_(last)  # exact below 2**53
        parts.append(places[places < count].long())
        last = int(places[-1])
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)


def _distinct(rows: int, size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``count`` different numbers below ``size`` for every row, in order.

    What is there twice is drawn anew: no number is treated unlike another, so all sets are as
    likely.
    """
    device = None if generator is None else generator.device
    drawn = torch.empty(rows, count, dtype=torch.int64, device=device)
    if count == 0:
        return drawn
    drawn = torch.randint(size, (rows, count), generator=generator, device=device).sort(1).values
    open_rows = torch.arange(rows, device=device)
    part = drawn
    while True:
        twice = torch.zeros_like(part, dtype=torch.bool)
        twice[:, 1:] = part[:, 1:] == part[:, :-1]
        again = twice.any(1)
        if not bool(again.any()):
            return drawn
        open_rows, part, twice = open_rows[again], part[again], twice[again]
        number = int(twice.sum())
        part[twice] = torch.randint(size, (number,), generator=generator, device=device)
        part = part.sort(1).values
        drawn[open_rows] = part


def _others(chosen: Tensor, size: int) -> Tensor:
    """Return for every row the numbers below ``size`` that are not there, in order."""
    rows, count = chosen.shape
    numbers = torch.arange(size - count, device=chosen.device).expand(rows, -1).contiguous()
    # how many of those that are there lie below each of the others
    below = (chosen - torch.arange(count, device=chosen.device)).contiguous()
    return numbers + torch.searchsorted(below, numbers, right=True)


def _by_source(edges: Tensor, outputs: int) -> Tensor:
    """Sort edges, none of which is there twice, by source and then target."""
    places = edges[0] * outputs + edges[1]
    if places.is_cpu:  # NumPy sorts integers by vector instructions
        places.numpy().sort()
    else:
        places = places.sort().values
    sources = places // outputs
    return torch.stack([sources, places - sources * outputs])


def _near_pairs(inputs: Tensor, outputs: Tensor, radius: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of a source and a target in cells of a grid that are near, each pair once."""
    inputs, outputs = inputs[:, :_GRID], outputs[:, :_GRID]
    dims = inputs.shape[1]
    low = torch.minimum(inputs.amin(0), outputs.amin(0)).double()
    span = torch.maximum(inputs.amax(0), outputs.amax(0)).double() - low
    # no more cells than neurons, for cells are numbered; a larger one holds more pairs
    most = max(1, math.floor((len(inputs) + len(outputs)) ** (1 / dims)))
    width = torch.clamp(span / most, min=radius * (1 + 1e-9) / _FINER)
    counts = (span / width).floor().long() + 1 + 2 * _FINER  # with empty ones at both ends
    strides = torch.cat([counts.new_ones(1), counts[:-1].cumprod(0)])

    def cells(places: Tensor) -> Tensor:
        at = ((places.double() - low) / width).floor().long().clamp_(min=0)
        return (torch.minimum(at, counts - 1 - 2 * _FINER) + _FINER) @ strides

    # neighbours in memory are neighbours in space
    cell_of, sources = cells(inputs).sort(stable=True)
    target_cells, targets = cells(outputs).sort(stable=True)
    ends = torch.bincount(target_cells, minlength=int(counts.prod())).cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    # cells along the first dimension are one run
    for step in itertools.product(range(-_FINER, _FINER + 1), repeat=dims - 1):
        row = cell_of + int(strides[1:] @ strides.new_tensor(step))
        yield from _pairs(sources, targets, begins[row - _FINER], ends[row + _FINER])


def _pairs(
    sources: Tensor, targets: Tensor, begins: Tensor, ends: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each source with its run of targets, some sources at a time."""
    many = ends - begins
    total = many.cumsum(0)
    start = 0
    while start < len(sources):
        before = int(total[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(total, before + _PAIRS)))
        some = slice(start, stop)
        here = many[some]
        offset = (begins[some] - (total[some] - here - before)).repeat_interleave(here)
        places = torch.arange(len(offset), device=targets.device).add_(offset)
        yield sources[some].repeat_interleave(here), targets.index_select(0, places)
        start = stop
