"""Convert trajectories to a ``neo.Block``: spike trains and analog signals, with their units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.spike_values import SPIKE_NAMES, Kind, are_events, is_state


def neo_block(
    trajectories: Mapping[str, NDArray[Any]], steps: int, dt: float, kinds: Mapping[str, Kind]
) -> Any:
    """Return a ``neo.Block`` with a segment for each sample of trajectories ``[T, B, ...]``.

    A step lasts ``dt`` milliseconds. Names and values tell of what no ``kinds`` are known of.
    """
    import neo

    block = neo.Block(name="traceTorch")
    batch = next(iter(trajectories.values())).shape[1]
    for sample in range(batch):
        block.segments.append(neo.Segment(name=f"sample {sample}", index=sample))
    for name, array in trajectories.items():
        values = array.reshape(*array.shape[:2], -1)
        # of the whole batch: a sample in which nothing happens is no other kind of data
        counts = _spike_counts(name, values, kinds.get(name))
        signs = (1, -1) if (values < 0).any() else (1,)
        for segment, sample in zip([*block.segments], range(batch), strict=True):
            if counts is not None:
                for train in _trains(name, counts[:, sample], signs, steps, dt):
                    segment.spiketrains.append(train)
            else:
                segment.analogsignals.append(_signal(name, values[:, sample], dt))
    return block


def _spike_counts(name: str, values: NDArray[Any], kind: Kind | None) -> NDArray[Any] | None:
    """Return how many spikes of which sign ``[T, B, N]`` are; ``None`` for what is not spikes."""
    own = name.rpartition(".")[2]
    if is_state(name, kind) or own == "input":
        return None
    may_be_levels = kind == "spikes" or (kind is None and own in SPIKE_NAMES)
    if may_be_levels and np.isfinite(values).all() and (values == np.floor(values)).all():
        return values.astype(np.int64)
    if are_events(name, values, kind):
        return (values > 0).astype(np.int64) - (values < 0)
    return None  # numbers, such as those that a sigma-delta neuron sends


def _signal(name: str, values: NDArray[Any], dt: float) -> Any:
    """Return states ``[T, N]``, each sampled in the middle of its step."""
    import neo
    import quantities

    times = {"t_start": 0.5 * dt * quantities.ms, "sampling_period": dt * quantities.ms}
    return neo.AnalogSignal(values, quantities.dimensionless, **times, name=name, path=name)


def _trains(
    name: str, counts: NDArray[Any], signs: tuple[int, ...], steps: int, dt: float
) -> Iterator[Any]:
    """Yield the spikes ``[T, N]`` of each neuron, those of either sign by themselves.

    A count of k is k spikes at one time.
    """
    import neo
    import quantities

    for neuron, column in enumerate(counts.T):
        for sign in signs:
            # in the middle: at the edge between two bins rounding decides which one has it
            times = (np.repeat(np.arange(steps), np.maximum(sign * column, 0)) + 0.5) * dt
            annotations = {"path": name, "neuron": neuron, "sign": sign}
            yield neo.SpikeTrain(
                times * quantities.ms,
                t_stop=steps * dt * quantities.ms,
                name=f"{name}[{neuron}]",
                **annotations,
            )
