"""Convert trajectories to a ``neo.Block``: spike trains and analog signals, with their units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.spike_values import is_events


def neo_block(trajectories: Mapping[str, NDArray[Any]], steps: int, dt: float) -> Any:
    """Return a ``neo.Block`` with a segment for each sample.

    Args:
        trajectories: ``[T, B, ...]`` by name, of one T and one B.
        steps: T.
        dt: duration of a step in milliseconds.
    """
    import neo

    block = neo.Block(name="traceTorch")
    batch = next(iter(trajectories.values())).shape[1]
    for sample in range(batch):
        block.segments.append(neo.Segment(name=f"sample {sample}", index=sample))
    for name, array in trajectories.items():
        values = array.reshape(*array.shape[:2], -1)
        # of the whole batch: a sample in which nothing happens is no other kind of data
        events, signs = is_events(values), (1, -1) if (values < 0).any() else (1,)
        for segment, sample in zip([*block.segments], range(batch), strict=True):
            if events:
                for train in _trains(name, values[:, sample], signs, steps, dt):
                    segment.spiketrains.append(train)
            else:
                segment.analogsignals.append(_signal(name, values[:, sample], dt))
    return block


def _signal(name: str, values: NDArray[Any], dt: float) -> Any:
    """Return states ``[T, N]``, each sampled in the middle of its step."""
    import neo
    import quantities

    times = {"t_start": 0.5 * dt * quantities.ms, "sampling_period": dt * quantities.ms}
    return neo.AnalogSignal(values, quantities.dimensionless, **times, name=name, path=name)


def _trains(
    name: str, values: NDArray[Any], signs: tuple[int, ...], steps: int, dt: float
) -> Iterator[Any]:
    """Yield the spikes ``[T, N]`` of each neuron, those of either sign by themselves."""
    import neo
    import quantities

    for neuron, column in enumerate(values.T):
        for sign in signs:
            # in the middle: at the edge between two bins rounding decides which one has it
            times = (np.flatnonzero(sign * column > 0) + 0.5) * dt
            annotations = {"path": name, "neuron": neuron, "sign": sign}
            yield neo.SpikeTrain(
                times * quantities.ms,
                t_stop=steps * dt * quantities.ms,
                name=f"{name}[{neuron}]",
                **annotations,
            )
