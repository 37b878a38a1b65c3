"""Draw masks of sparse connectivity: by probability, by in-degree, by distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_flag, check_integer, check_share
from tracetorch.core.docstrings import SharedDescriptions

# what masks and edges are drawn by; an edge has outputs and inputs as a mask has
describe_drawn = SharedDescriptions(
    {
        "outputs": "number of neurons behind the connection.",
        "inputs": "number before it.",
        "probability": "of every connection by itself, in [0, 1].",
        "degree": "number of inputs of each output, all different; at most as many as there are.",
        "self_connections": "``False``: none from a neuron to itself, in a recurrent connection.",
        "generator": "source of the random numbers; PyTorch's own where it is ``None``.",
    },
    raises={
        "TypeError": "an argument is of the wrong type.",
        "ValueError": "an argument is out of range or of another shape, a kernel returns something "
        "else than a probability for each distance, or there are no self-connections to leave out.",
    },
)


@describe_drawn
def random_mask(
    outputs: int,
    inputs: int,
    probability: float,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask in which each connection is there with a fixed probability (Erdos-Renyi).

    Returns:
        Booleans ``[outputs, inputs]``, for :func:`connect`.

    Example:
        >>> mask = random_mask(200, 100, 0.1, generator=torch.Generator().manual_seed(0))
        >>> mask.shape, round(mask.float().mean().item(), 2)
        (torch.Size([200, 100]), 0.1)
    """
    sizes = check_sizes(outputs, inputs, self_connections)
    probability = check_share("probability", probability)
    return _without_self(_uniform(sizes, generator) < probability, self_connections)


@describe_drawn
def in_degree_mask(
    outputs: int,
    inputs: int,
    degree: int,
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask in which every output has the same number of inputs (fixed in-degree).

    Returns:
        Booleans ``[outputs, inputs]``, for :func:`connect`.

    Example:
        >>> in_degree_mask(3, 100, 10).sum(1).tolist()
        [10, 10, 10]
    """
    sizes = check_sizes(outputs, inputs, self_connections)
    most = inputs - (not self_connections)
    if not 0 <= check_integer("degree", degree) <= most:
        raise ValueError(f"degree must be 0 to {most}, the number of inputs, got {degree}.")
    order = _uniform(sizes, generator)
    if not self_connections:
        order.fill_diagonal_(2.0)  # behind all others
    chosen = order.argsort(1)[:, :degree]
    return torch.zeros(sizes, dtype=torch.bool, device=order.device).scatter_(1, chosen, True)


@describe_drawn
def distance_mask(
    outputs: Tensor,
    inputs: Tensor,
    kernel: Callable[[Tensor], Tensor],
    *,
    self_connections: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a mask in which a connection is there with a probability that its length sets.

    Args:
        outputs: positions of the neurons behind the connection, ``[outputs, D]``.
        inputs: positions of those before it, ``[inputs, D]``.
        kernel: a function of all distances, in the unit of the positions, that returns
            probabilities in [0, 1]: ``lambda d: torch.exp(-d / 0.2)``.

    Returns:
        Booleans ``[outputs, inputs]``, for :func:`connect`.

    Example:
        >>> line = torch.arange(4.0)[:, None]
        >>> distance_mask(line, line, lambda d: (d <= 1).float()).int().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    check_positions(outputs, inputs, kernel)
    sizes = check_sizes(len(outputs), len(inputs), self_connections)
    probability = checked_probabilities(kernel, torch.cdist(outputs, inputs))
    drawn = _uniform(sizes, generator).to(probability.device)
    return _without_self(drawn < probability, self_connections)


def check_positions(outputs: object, inputs: object, kernel: object) -> None:
    """Raise unless these are positions ``[n, D]`` of floats, and a function of distances."""
    for name, places in (("outputs", outputs), ("inputs", inputs)):
        if not isinstance(places, Tensor) or not places.is_floating_point():
            got = places.dtype if isinstance(places, Tensor) else type(places).__name__
            raise TypeError(f"{name} must be positions, a tensor of floats, got {got}.")
    shapes = [list(each.shape) for each in (outputs, inputs) if isinstance(each, Tensor)]
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            "outputs and inputs must be positions [outputs, D] and [inputs, D], got "
            f"{shapes[0]} and {shapes[1]}. On a line D is 1."
        )
    if not callable(kernel):
        raise TypeError(f"kernel must be a function of distances, got {kernel!r}.")


def checked_probabilities(kernel: Callable[[Tensor], Tensor], distances: Tensor) -> Tensor:
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


def check_sizes(outputs: int, inputs: int, self_connections: bool) -> tuple[int, int]:
    """Return the sizes of a connection, checked."""
    check_count("outputs", outputs)
    check_count("inputs", inputs)
    if not check_flag("self_connections", self_connections) and outputs != inputs:
        raise ValueError(
            f"self_connections=False is for a recurrent connection, and {inputs} inputs are not "
            f"the {outputs} outputs."
        )
    return outputs, inputs


def _uniform(sizes: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    return torch.rand(sizes, generator=generator, device=device)


def _without_self(mask: Tensor, self_connections: bool) -> Tensor:
    return mask if self_connections else mask.fill_diagonal_(False)
