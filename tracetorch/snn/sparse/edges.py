"""Draw edges of sparse connectivity, and masks: by probability, in-degree, distance, populations.

Memory goes by the edges that there will be, and time, but for distances. Edges are sorted by
source. No number depends on the number of threads. A mask is edges written into a matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.checks import (
    check_count,
    check_flag,
    check_integer,
    check_positive,
    check_share,
)
from tracetorch.core.docstrings import SharedDescriptions

_DRAWN = 1 << 22  # numbers at a time
_PAIRS = 1 << 20  # distances at a time

# what masks and edges are drawn by; an edge has outputs and inputs as a mask has
describe_drawn = SharedDescriptions(
    {
        "outputs": "number of neurons behind the connection.",
        "inputs": "number before it.",
        "probability": "of every connection by itself, in [0, 1].",
        "degree": "number of inputs of each output, all different; at most as many as there are.",
        "self_connections": "``False``: none from a neuron to itself, in a recurrent connection.",
        "kernel": "a function of distances ``[n]``, in the unit of the positions, that returns "
        "probabilities in [0, 1]: ``lambda d: torch.exp(-d / 0.2)``.",
        "generator": "source of the random numbers; PyTorch's own where it is ``None``.",
    },
    raises={
        "TypeError": "an argument is of the wrong type.",
        "ValueError": "an argument is out of range or of another shape, a kernel returns something "
        "else than a probability for each distance, or there are no self-connections to leave out.",
    },
)


@describe_drawn
def random_edges(
    outputs: int,
    inputs: int,
    probability: float,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges ``[2, E]``, each of which is there with a fixed probability (Erdos-Renyi).

    Example:
        >>> edges = random_edges(1000, 500, 0.02, generator=torch.Generator().manual_seed(0))
        >>> 9_600 < edges.shape[1] < 10_400, bool((edges[0].diff() >= 0).all())
        (True, True)
    """
    _check_sizes(outputs, inputs, self_connections)
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
    """Draw edges ``[2, E]``: every output has the same number of inputs (fixed in-degree).

    Example:
        >>> in_degree_edges(3, 100, 10)[1].bincount().tolist()
        [10, 10, 10]
    """
    _check_sizes(outputs, inputs, self_connections)
    most = inputs - (not self_connections)
    if not 0 <= check_integer("degree", degree) <= most:
        raise ValueError(f"degree must be 0 to {most}, the number of inputs, got {degree}.")
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
    """Draw edges ``[2, E]``, each of which is there with a probability that its length sets.

    No edge is longer than ``radius``. Time goes by all pairs, memory by those that are near.

    Args:
        outputs: positions of the neurons behind the connection, ``[outputs, D]``.
        inputs: positions of those before it, ``[inputs, D]``.
        radius: no edge is longer; ``math.inf`` for edges of any length.

    Example:
        >>> line = torch.arange(4.0)[:, None]
        >>> distance_edges(line, line, torch.ones_like, radius=1.0).tolist()
        [[0, 0, 1, 1, 1, 2, 2, 2, 3, 3], [0, 1, 0, 1, 2, 1, 2, 3, 2, 3]]
    """
    if radius != math.inf:
        radius = check_positive("radius", radius)
    _check_positions(outputs, inputs, kernel)
    _check_sizes(len(outputs), len(inputs), self_connections)
    device = None if generator is None else generator.device
    rows = max(1, _PAIRS // len(outputs))
    found = [torch.zeros(2, 0, dtype=torch.int64, device=inputs.device)]
    for start in range(0, len(inputs), rows):
        # differences, not a product of matrices, whose rounding depends on its shape
        exact = "donot_use_mm_for_euclid_dist"
        length = torch.cdist(inputs[start : start + rows], outputs, compute_mode=exact)
        near = length <= radius
        if not self_connections:
            near.diagonal(start).fill_(False)
        edges = near.nonzero().t()
        probability = _checked_probabilities(kernel, length[near])
        drawn = torch.rand(edges.shape[1], generator=generator, device=device)
        edges[0] += start
        found.append(edges[:, drawn.to(probability.device) < probability])
    return torch.cat(found, 1)


@describe_drawn
def population_edges(
    outputs: Sequence[int],
    inputs: Sequence[int],
    probability: Sequence[Sequence[float]] | Tensor,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw edges ``[2, E]`` between populations, with a probability for each pair of these.

    Args:
        outputs: sizes of the populations behind the connection, in the order of their neurons.
        inputs: sizes of those before it.
        probability: ``probability[i][j]`` is that of an edge from population ``j`` to ``i``.

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
    _check_sizes(sum(outputs), sum(inputs), self_connections)
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
    """Draw ``count`` different numbers below ``size`` for every row, in order; all sets as likely.

    What is there twice is drawn anew; half and more are the largest of as many random numbers.
    """
    device = None if generator is None else generator.device
    if 2 * count >= size:
        keys = torch.rand(rows, size, dtype=torch.float64, generator=generator, device=device)
        return keys.topk(count).indices.sort(1).values
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


def _by_source(edges: Tensor, outputs: int) -> Tensor:
    """Sort edges, none of which is there twice, by source and then target."""
    places = edges[0] * outputs + edges[1]
    if places.is_cpu:  # NumPy sorts integers by vector instructions
        places.numpy().sort()
    else:
        places = places.sort().values
    sources = places // outputs
    return torch.stack([sources, places - sources * outputs])


# Masks


@describe_drawn
def random_mask(
    outputs: int,
    inputs: int,
    probability: float,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask for :func:`connect`, with one probability for all (Erdos-Renyi).

    Example:
        >>> mask = random_mask(200, 100, 0.1, generator=torch.Generator().manual_seed(0))
        >>> mask.shape, round(mask.float().mean().item(), 2)
        (torch.Size([200, 100]), 0.1)
    """
    options: dict[str, Any] = {"self_connections": self_connections, "generator": generator}
    return _mask(random_edges(outputs, inputs, probability, **options), outputs, inputs)


@describe_drawn
def in_degree_mask(
    outputs: int,
    inputs: int,
    degree: int,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask for :func:`connect`: all outputs have as many inputs (fixed in-degree).

    Example:
        >>> in_degree_mask(3, 100, 10).sum(1).tolist()
        [10, 10, 10]
    """
    options: dict[str, Any] = {"self_connections": self_connections, "generator": generator}
    return _mask(in_degree_edges(outputs, inputs, degree, **options), outputs, inputs)


@describe_drawn
def distance_mask(
    outputs: Tensor,
    inputs: Tensor,
    kernel: Callable[[Tensor], Tensor],
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask for :func:`connect`, by the length of each connection.

    Args:
        outputs: positions of the neurons behind the connection, ``[outputs, D]``.
        inputs: positions of those before it, ``[inputs, D]``.

    Example:
        >>> line = torch.arange(4.0)[:, None]
        >>> distance_mask(line, line, lambda d: (d <= 1).float()).int().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    options: dict[str, Any] = {"self_connections": self_connections, "generator": generator}
    edges = distance_edges(outputs, inputs, kernel, radius=math.inf, **options)
    return _mask(edges, len(outputs), len(inputs))


def _mask(edges: Tensor, outputs: int, inputs: int) -> Tensor:
    mask = torch.zeros(outputs, inputs, dtype=torch.bool, device=edges.device)
    mask[edges[1], edges[0]] = True
    return mask


# Checks


def _check_positions(outputs: Tensor, inputs: Tensor, kernel: object) -> None:
    """Raise unless these are positions ``[n, D]`` of floats, and a function of distances."""
    for name, places in (("outputs", outputs), ("inputs", inputs)):
        if not isinstance(places, Tensor) or not places.is_floating_point():
            got = places.dtype if isinstance(places, Tensor) else type(places).__name__
            raise TypeError(f"{name} must be positions, a tensor of floats, got {got}.")
    shapes = [list(each.shape) for each in (outputs, inputs)]
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            "outputs and inputs must be positions [outputs, D] and [inputs, D], got "
            f"{shapes[0]} and {shapes[1]}. On a line D is 1."
        )
    if not callable(kernel):
        raise TypeError(f"kernel must be a function of distances, got {kernel!r}.")
    if not all(bool(each.isfinite().all()) for each in (outputs, inputs)):
        raise ValueError("positions must be finite, got infinite values or NaN.")


def _checked_probabilities(kernel: Callable[[Tensor], Tensor], distances: Tensor) -> Tensor:
    """Return what a kernel makes of distances, if that is a probability for each."""
    probability = kernel(distances)
    if not isinstance(probability, Tensor) or probability.shape != distances.shape:
        raise ValueError(
            f"kernel must return a probability for each distance, {list(distances.shape)}."
        )
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(
            "kernel must return probabilities in [0, 1], got values from "
            f"{probability.min().item():.3g} to {probability.max().item():.3g}. Clamp them."
        )
    return probability


def _check_sizes(outputs: int, inputs: int, self_connections: bool) -> None:
    check_count("outputs", outputs)
    check_count("inputs", inputs)
    if not check_flag("self_connections", self_connections) and outputs != inputs:
        raise ValueError(
            f"self_connections=False is for a recurrent connection, and {inputs} inputs are not "
            f"the {outputs} outputs."
        )
