"""Inputs of a network by events, for some steps at a time: a list, and Poisson groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.checks import check_each, check_integer, check_integers, check_number
from tracetorch.fuse.codegen.sparse_loop import TILE
from tracetorch.fuse.runtime.sparse_segments import Rows, starts_of
from tracetorch.fuse.runtime.threefry import compiled_uniforms

_VALUES = 1 << 22  # random numbers at a time


class Span(NamedTuple):
    """Some steps of a run, and its sizes."""

    begin: int
    end: int
    samples: int
    neurons: int


class EventInput:
    """Input by a list of events: a value arrives at a neuron in a step. Several add up.

    Args:
        events: integers ``[n, 3]``, the step, the sample and the neuron of each, in any order; or a
            list with a tensor for each step, of samples and neurons ``[n, 2]``.
        values: what arrives, ``[n]`` in the order of the events, or one number for all. A gradient
            goes back to a tensor that requires one.

    Raises:
        TypeError, ValueError: another type or shape, or a negative index.

    Example:
        >>> EventInput(torch.tensor([[0, 0, 3], [5, 0, 1]]), values=0.5)
        EventInput(2 events)
    """

    def __init__(self, events: Tensor | Sequence[Tensor], values: Tensor | float = 1.0) -> None:
        listed = events if isinstance(events, Tensor) else _by_step(events)
        listed = check_integers("events", listed).long().cpu()
        if listed.ndim != 2 or listed.shape[1] != 3:
            raise ValueError(
                "events must be [n, 3], step, sample and neuron in a row, got shape "
                f"{list(listed.shape)}."
            )
        if isinstance(values, Tensor):
            if not values.is_floating_point():
                raise TypeError(f"values must be floats, got {values.dtype}. Convert: .float().")
            check_each("values", values, len(listed), "event")
        else:
            values = torch.tensor(check_number("values", values), dtype=torch.float64)
        if len(listed) and int(listed.min()) < 0:
            raise ValueError(f"steps, samples and neurons begin with 0, got {int(listed.min())}.")
        self._order = listed[:, 0].argsort(stable=True)
        self.events = listed[self._order]
        self._given = values  # which may be learned between runs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.events)} events)"

    def values(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return the values of some events, in the order of ``events``."""
        return self._given.cpu().expand(len(self._order))[self._order[first:last]]

    @property
    def is_learned(self) -> bool:
        """Whether a gradient goes back to the values."""
        return self._given.requires_grad

    @property
    def largest(self) -> tuple[int, int, int]:
        """The largest step, sample and neuron of an event."""
        step, sample, neuron = torch.cat([self.events.new_zeros(1, 3), self.events]).amax(0)
        return int(step), int(sample), int(neuron)

    def between(self, span: Span, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the places ``((t - begin) * samples + b) * neurons + n`` of events, and values."""
        bounds = torch.tensor([span.begin, span.end])
        first, last = torch.searchsorted(self.events[:, 0].contiguous(), bounds).tolist()
        step, sample, neuron = self.events[first:last].unbind(1)
        places = ((step - span.begin) * span.samples + sample) * span.neurons + neuron
        return places, self.values(first, last).to(dtype)


def _by_step(events: Sequence[Tensor]) -> Tensor:
    """Return lists of samples and neurons, one for each step, as one list of events."""
    rows = [torch.zeros(0, 3, dtype=torch.int64)]
    for step, each in enumerate(events):
        if not isinstance(each, Tensor) or each.ndim != 2 or each.shape[1] != 2:
            got = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ValueError(
                f"events of step {step} must be [n, 2], sample and neuron in a row, got {got}."
            )
        row = check_integers(f"events of step {step}", each).long()
        rows.append(torch.cat([row.new_full((len(row), 1), step), row], 1))
    return torch.cat(rows)


class PoissonInput:
    """Input by Poisson groups: in every step a value arrives at each neuron with a probability.

    A run has the same events each time, by seed, step, sample and place in ``neurons``. One that
    goes on from another takes another seed.

    Args:
        neurons: at which events arrive, integers ``[k]``.
        probability: of an event in a step, in [0, 1], one number or ``[k]``.
        value: what arrives, one number.
        seed: of the numbers, 0 to 2**31 - 1.

    Raises:
        TypeError, ValueError: an argument is of another type, or out of range.

    Example:
        >>> PoissonInput(torch.arange(21), 0.015, value=0.3, seed=1)
        PoissonInput(21 neurons)
    """

    def __init__(
        self, neurons: Tensor, probability: Tensor | float, *, value: float = 1.0, seed: int = 0
    ) -> None:
        neurons = check_integers("neurons", neurons).long().cpu()
        if neurons.ndim != 1 or (len(neurons) and int(neurons.min()) < 0):
            raise ValueError(
                f"neurons must be [k], from 0 on, got shape {list(neurons.shape)}, the least "
                f"{int(neurons.min()) if neurons.numel() else 'of none'}."
            )
        share = torch.as_tensor(probability, dtype=torch.float64).detach().cpu()
        check_each("probability", share, len(neurons), "neuron")
        if not bool(((share >= 0) & (share <= 1)).all()):
            raise ValueError("probability must be in [0, 1]: a rate times the length of a step.")
        self.neurons = neurons
        self.probability = share.expand(len(neurons))
        self.value, self.seed = check_number("value", value), check_integer("seed", seed)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be 0 to 2**31 - 1, got {seed}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.neurons)} neurons)"

    @property
    def largest(self) -> tuple[int, int, int]:
        """The largest step, sample and neuron of an event."""
        return 0, 0, int(self.neurons.max()) if len(self.neurons) else 0

    def between(self, span: Span, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Draw the events of some steps; return places and values, as those of a list."""
        lanes = span.samples * len(self.neurons)
        every = max(1, _VALUES // max(1, lanes))
        found = [torch.zeros(0, dtype=torch.int64)]
        # the least number of this precision that is not below, so that those drawn stay short
        share = self.probability.float()
        share = torch.where(share < self.probability, share.nextafter(share.new_ones(())), share)
        for begin in range(span.begin, span.end, every):
            steps = min(every, span.end - begin)
            # the higher word of the counter is the seed
            position = torch.full((lanes,), (self.seed << 32) + begin, dtype=torch.int64)
            drawn, _ = compiled_uniforms(position, steps, torch.float32)
            there = drawn.view(steps, span.samples, -1) < share
            step, sample, which = there.nonzero().unbind(1)
            step += begin - span.begin
            places = (step * span.samples + sample) * span.neurons + self.neurons[which]
            found.append(places)
        places = torch.cat(found)
        return places, torch.full((len(places),), self.value, dtype=dtype)


Source: TypeAlias = EventInput | PoissonInput


def check_sources(sources: Sequence[object], sizes: tuple[int, int, int]) -> None:
    """Raise where an input is no source, or an event lies outside of a run of some sizes."""
    for source in sources:
        if not isinstance(source, EventInput | PoissonInput):
            raise TypeError(
                "inputs must be an EventInput, a PoissonInput or a list of them, got "
                f"{type(source).__name__}."
            )
        names = "step", "sample", "neuron"
        for name, found, size in zip(names, source.largest, sizes, strict=True):
            if found >= size:
                raise ValueError(
                    f"an event has the {name} {found}, and the run has {size}, 0 to {size - 1}."
                )


def rows_of(sources: Sequence[Source], span: Span, dtype: torch.dtype) -> Rows:
    """Return the events of some steps from all sources, those of one place added up."""
    parts = [source.between(span, dtype) for source in sources]
    places = torch.cat([torch.zeros(0, dtype=torch.int64), *(part[0] for part in parts)])
    values = torch.cat([torch.zeros(0, dtype=dtype), *(part[1] for part in parts)])
    order = places.argsort(stable=True)
    each, where = torch.unique_consecutive(places[order], return_inverse=True)
    total = torch.zeros(len(each), dtype=dtype).index_add_(0, where, values[order])
    row, neuron = each // span.neurons, each % span.neurons
    rows, tiles = (span.end - span.begin) * span.samples, -(-span.neurons // TILE)
    starts = starts_of(row * tiles + neuron // TILE, rows * tiles)
    return Rows(starts, neuron.int(), total)
