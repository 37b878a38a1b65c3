"""Find where a neuron fires: the value that a state must pass for a spike, at every step.

A spike function is given a distance ``u``, and fires above 0. Run with silent spike functions, a
step leaves its states as they are before the reset; where ``state - u`` depends neither on the
input nor on that state, it is the value above which the neuron fires: a threshold that adaptation
has raised, a peak in millivolts. With ``state + u`` it is one below which it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell

_SAMPLES = 16  # random states and inputs at which lines are compared


@dataclass(frozen=True)
class FiringLine:
    """A step whose output is the value of a state at which the neuron fires, or how far it is."""

    step: Callable[..., tuple[Any, ...]]  # of the neuron
    spikes: tuple[str, ...]  # names of its spike functions
    call: int | None  # which of their calls; None: the output is the state before its reset
    place: int = 0  # of the state, among those of the step
    sign: float = 1.0  # 1.0 if the neuron fires above the line, -1.0 if below
    alone: bool = False  # the output is what the spike function is given: it fires above 0

    def __call__(self, *tensors: Any, **kwargs: Any) -> tuple[Any, ...]:
        ends, distances = silent_step(self.step, self.spikes, tensors, kwargs)
        _, *after = self.step(*tensors, **kwargs)
        distance = 0.0 if self.call is None else distances[self.call]
        return distance if self.alone else ends[self.place] - self.sign * distance, *after


def spike_alone(cell: Cell) -> Cell:
    """Return the cell without states whose step is a spike function, ``spike``, alone."""
    return replace(cell, step=_spike, inputs=("x",), states=(), active=(), starts=frozenset())


def _spike(x: Tensor, *, spike: Callable[[Tensor], Tensor]) -> tuple[Tensor]:
    return (spike(x),)


def silent_step(
    step: Callable[..., tuple[Any, ...]],
    spikes: Sequence[str],
    tensors: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[list[Any], list[Tensor]]:
    """Run a step that never fires; return next states, and what its spike functions were given."""
    distances: list[Tensor] = []

    def silent(u: Tensor) -> Tensor:
        distances.append(u)
        return torch.zeros_like(u)

    _, *ends = step(*tensors, **{**kwargs, **dict.fromkeys(spikes, silent)})
    return ends, distances


def smallest_shape(cell: Cell) -> list[int]:
    """Return the shape of one step in as few dimensions as the neuron allows."""
    shape = [1] * (-cell.dim if cell.dim < 0 else cell.dim + 1)
    shape[cell.dim] = cell.num_neurons
    return shape


def firing_lines(
    cell: Cell, spikes: Sequence[str], start: Mapping[str, float], kwargs: Mapping[str, Any]
) -> list[tuple[FiringLine, str | None]]:
    """Return the lines of a neuron in the order of its step, and the parameters that they are.

    ``start`` has a value around which each active state lies; the step's ``kwargs`` are in float64.
    """
    size = smallest_shape(cell)
    generator = torch.Generator().manual_seed(0)
    # parameters that are equal are moved apart, for a line is compared with each
    moved = {
        name: value * (1 + 0.01 * place) if isinstance(value, Tensor) else value
        for place, (name, value) in enumerate(kwargs.items(), 1)
    }
    parameters = {name: value for name, value in moved.items() if isinstance(value, Tensor)}

    def draw(around: float) -> Tensor:
        spread = max(1.0, 0.1 * abs(around))
        shape = (_SAMPLES, *size)
        return around + spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    def silent(x: Tensor, states: Mapping[str, Tensor]) -> tuple[list[Any], list[Tensor]]:
        tensors = (x, *map(states.get, cell.states))
        return silent_step(cell.step, spikes, tensors, moved)

    def close(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-9, atol=1e-9)

    x, states = draw(0.0), {name: draw(start[name]) for name in cell.active}
    ends, distances = silent(x, states)
    found: dict[int, tuple[FiringLine, str | None]] = {}
    for name in cell.active:
        place = cell.states.index(name)
        others, moved_distances = silent(x + draw(0.0), {**states, name: states[name] + draw(0.0)})
        for call, (u, v) in enumerate(zip(distances, moved_distances, strict=True)):
            for sign in (1.0, -1.0):
                line = ends[place] - sign * u
                stays = close(line, others[place] - sign * v)
                if call not in found and stays and not torch.equal(u, v):
                    known = (n for n, value in parameters.items() if close(line, value))
                    made = FiringLine(cell.step, tuple(spikes), call, place, sign)
                    found[call] = made, next(known, None)
    return [found[call] for call in sorted(found)]
