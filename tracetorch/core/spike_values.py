"""Tell recorded spikes from states by their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_events(values: NDArray[Any]) -> bool:
    """Whether ``[T, B, N]`` are spikes: 0, one positive and one negative value per neuron.

    A neuron that is never 0 makes them states, unless all values are 0, 1 and -1.
    """
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
