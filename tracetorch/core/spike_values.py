"""Tell recorded spikes from states: by what their layer says, by their name, by their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# What a trajectory of a known layer holds: spikes, of which a layer may scale those of each
# neuron, or else numbers, as states are.
Kind: TypeAlias = Literal["spikes", "scaled spikes", "state"]
# The names under which a layer's spikes are recorded, and names that are never spikes.
SPIKE_NAMES = ("output", "prev_output", "spikes")
STATE_NAMES = ("mem", "syn", "rec")


class Trajectories(Mapping[str, Tensor]):
    """Trajectories by name, of which some are known to be spikes or states."""

    kinds: Mapping[str, Kind]
    """What is known of them by name; names and values tell of the others."""


def are_events(name: str, values: NDArray[Any], kind: Kind | None) -> bool:
    """Whether ``[T, B, N]``, recorded as ``"path.name"``, are spikes of one size per neuron."""
    if kind is not None:
        return kind != "state" and has_one_size(values)
    return name.rpartition(".")[2] not in STATE_NAMES and is_events(values)


def is_events(values: NDArray[Any]) -> bool:
    """Whether ``[T, B, N]`` are spikes: 0, 1, -1; or 0 and one value of a sign per neuron."""
    if ((values == 0) | (np.abs(values) == 1)).all():
        return True
    return bool((values == 0).any((0, 1)).all()) and has_one_size(values)


def has_one_size(values: NDArray[Any]) -> bool:
    """Whether each neuron of ``[T, B, N]`` has at most one positive and one negative value."""
    if not np.isfinite(values).all():
        return False
    for signed in (values, -values):
        # per neuron: a layer may scale the spikes of each of its neurons
        highest = signed.max((0, 1))
        if not ((signed <= 0) | (signed == highest)).all():
            return False
    return True
