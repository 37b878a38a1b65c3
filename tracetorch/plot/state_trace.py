"""Draw the states of neurons over time, with their thresholds and spikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.plot.axes import COLOURS, INK, TimeScale, add_legend, get_axes, set_title
from tracetorch.plot.layer_parameters import thresholds as thresholds_of
from tracetorch.plot.recorded import (
    Array,
    Recorded,
    check_index,
    check_recording,
    select_sample,
    to_numpy,
)
from tracetorch.snn.sequence_layer import SequenceLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Thresholds: TypeAlias = SequenceLayer | Tensor | float | Sequence[Tensor | float]


def state_trace(
    states: Recorded,
    *,
    neurons: int | Sequence[int] = 0,
    spikes: Tensor | None = None,
    thresholds: Thresholds = (),
    sample: int | None = 0,
    dt: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw states over time, thresholds as dashed lines, and spikes as ticks above or below.

    Ticks of negative spikes are below. Membranes are recorded after their reset, so at a spike they
    mostly lie below the threshold that they had crossed; :func:`save_playground` shows them before.

    Args:
        states: a state of a layer, or a dict of its states by path: a line per state and neuron.
        neurons: indices of the neurons, in the flattened dimensions after the batch.
        spikes: the output of the layer.
        thresholds: the layer that has the thresholds, or their values: each a number, or one per
            neuron; those of negative spikes are negative.
        sample: index in the batch; ``None`` for ``[T, ...]`` without one.
        dt: duration of a step in milliseconds, for an axis in ms; ``None``: in steps.
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        ``[T, B, ...]`` each; x in time steps from 0, or in ms; y in units of the state.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a tensor has no batch or no neurons, ``sample`` or a neuron is out of range,
            spikes or thresholds do not fit the states, or ``dt`` is not positive.

    Example:
        >>> layer = LIF(2, beta=0.5)
        >>> mem, out = torch.tensor([0.6, 0.9, 0.1]).reshape(3, 1, 1).expand(3, 1, 2), None
        >>> ax = state_trace({"0.mem": mem}, neurons=1, thresholds=layer)
        >>> [line.get_label() for line in ax.lines][:2]
        ['0.mem', 'threshold']
    """
    layers = check_recording("state_trace", states)
    traces = {path: select_sample("state_trace", path, v, sample) for path, v in layers.items()}
    steps, size = _size(traces)
    selected = _selected(neurons, size)
    layer_spikes = None if spikes is None else _spikes_of(spikes, sample, (steps, size))
    shape = next(iter(layers.values())).shape
    levels = _threshold_levels(thresholds, shape[1:] if sample is None else shape[2:])
    time = TimeScale.of("state_trace", dt)

    ax = get_axes(ax, (6.4, 2.6))
    colour_by_neuron = _draw_states(ax, time, traces, selected)
    _draw_thresholds(ax, levels, selected, colour_by_neuron)
    if layer_spikes is not None:
        _draw_spikes(ax, time, layer_spikes, selected, colour_by_neuron)
    state = next(iter(traces)).rpartition(".")[2] if len(traces) == 1 else ""
    ax.set(ylabel=state or "state")
    time.show(ax, steps)
    if len(ax.lines) > 1 or len(selected) == 1:
        add_legend(ax)
    set_title(ax, title)
    return ax


def _size(traces: Mapping[str, Array]) -> tuple[int, int]:
    """Return the number of steps and of neurons, which all states of a layer have."""
    # one set of neurons, spikes and thresholds: all states must be of one layer
    sizes = {path: trace.shape[1] for path, trace in traces.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"state_trace: the states of one layer have one number of neurons, got {sizes}. Pass "
            "the states of a single layer."
        )
    steps, size = next(iter(traces.values())).shape
    return steps, size


def _selected(neurons: int | Sequence[int], size: int) -> list[int]:
    """Return the indices of neurons, each in range."""
    requested = neurons if isinstance(neurons, Sequence) else [neurons]
    selected = [check_index("state_trace: neurons", neuron, size) for neuron in requested]
    if not selected:
        raise ValueError("state_trace: neurons is empty. Pass at least one, neurons=[0].")
    return selected


def _spikes_of(spikes: Tensor, sample: int | None, shape: tuple[int, int]) -> Array:
    """Return the spikes of a sample, ``[T, N]``, of the shape of the states."""
    (checked,) = check_recording("state_trace: spikes", spikes).values()
    found = select_sample("state_trace: spikes", "", checked, sample)
    if found.shape != shape:
        raise ValueError(
            f"state_trace: spikes have {len(found)} steps of {found.shape[1]} "
            f"neurons, the states {shape[0]} of {shape[1]}. Pass the output of the same layer."
        )
    return found


def _draw_states(
    ax: Axes, time: TimeScale, traces: Mapping[str, Array], neurons: Sequence[int]
) -> dict[int, str]:
    """Draw a line for every state and neuron; return the colours by neuron."""
    # the colours go by lines, over all states and neurons
    colours: list[tuple[int, str]] = []
    for path, trace in traces.items():
        for neuron in neurons:
            colour = COLOURS[len(colours) % len(COLOURS)]
            colours.append((neuron, colour))
            indexed = f"{path}[{neuron}]" if path else f"neuron {neuron}"
            label = path if path and len(neurons) == 1 else indexed
            at = time.at(np.arange(len(trace)))
            ax.plot(at, trace[:, neuron], color=colour, linewidth=1.4, label=label)
    # several states of a neuron have several colours; its thresholds and spikes then have none
    return dict(colours) if len(traces) == 1 else {}


def _threshold_levels(thresholds: Thresholds, shape: torch.Size) -> list[Array]:
    """Expand every threshold to a value per neuron, ``[N]``, for states of ``shape`` at a step."""
    size = shape.numel()
    if isinstance(thresholds, SequenceLayer):
        levels = []
        for name, value in thresholds_of(thresholds).items():
            if value.ndim:
                # the number of dimensions after that of the neurons; a dim from the front
                # counts the batch, which shape does not have
                after = -thresholds.dim - 1
                if thresholds.dim >= 0:
                    after = len(shape) - thresholds.dim
                if len(shape) <= after or shape[-after - 1] != len(value):
                    raise ValueError(
                        f"state_trace: {thresholds!r} has {len(value)} values of {name}, one step "
                        f"of a sample of the states has shape {list(shape)}. Pass the layer whose "
                        "states they are."
                    )
                value = value.reshape(-1, *[1] * after)
            levels.append(to_numpy(value.expand(shape).reshape(-1)))
        return levels
    values = [thresholds] if isinstance(thresholds, (Tensor, float, int)) else list(thresholds)
    levels = []
    for number in values:
        if isinstance(number, bool) or not isinstance(number, (Tensor, float, int)):
            raise TypeError(
                "state_trace: thresholds must be a layer, numbers or tensors, got "
                f"{type(number).__name__}."
            )
        # a tensor of one element is one threshold for all neurons, as a number is
        level = torch.as_tensor(number)
        if level.numel() not in (1, size):
            raise ValueError(
                f"state_trace: a threshold has shape {list(level.shape)}, the states have {size} "
                "neurons. Pass one number, or one per neuron."
            )
        levels.append(to_numpy(level.reshape(-1).expand(size)))
    return levels


def _draw_thresholds(
    ax: Axes, levels: list[Array], selected: list[int], colours: dict[int, str]
) -> None:
    """Draw dashed lines: one where all neurons agree, otherwise one per neuron in its colour."""
    label = "threshold"
    for level in levels:
        # layers with one threshold for all neurons are common; one line is enough for them
        shared = len({float(level[neuron]) for neuron in selected}) == 1
        for neuron in selected[:1] if shared else selected:
            ax.axhline(
                float(level[neuron]),
                color=INK if shared else colours.get(neuron, INK),
                linewidth=1.0,
                linestyle=(0, (4, 3)),
                zorder=1,
                label=label,
            )
            label = "_"  # one entry in the legend


def _draw_spikes(
    ax: Axes,
    time: TimeScale,
    layer_spikes: Array,
    selected: list[int],
    colours: dict[int, str],
) -> None:
    """Draw ticks in rows above and below the traces, a row for each neuron."""
    low, high = ax.get_ylim()
    # rows are a share of the height, so that ticks look the same whatever the unit of the state
    row = 0.07 * (high - low)
    for sign, start in ((1, high), (-1, low)):
        if not (sign * layer_spikes[:, selected] > 0).any():
            continue
        for number, neuron in enumerate(selected):
            bottom = start + sign * (0.3 + number) * row
            ax.vlines(
                time.at(np.nonzero(sign * layer_spikes[:, neuron] > 0)[0]),
                bottom,
                bottom + sign * 0.75 * row,
                colors=colours.get(neuron, INK),
                linewidth=1.2,
            )
        limit = start + sign * (0.4 + len(selected)) * row
        low, high = min(low, limit), max(high, limit)
    ax.set_ylim(low, high)
