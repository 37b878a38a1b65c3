"""Draw the states of neurons over time, with their thresholds and spikes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.plot.axes import COLOURS, INK, TimeScale, describe_plot, finished, get_axes
from tracetorch.plot.recorded import (
    Array,
    Recorded,
    check_index,
    check_recording,
    select_sample,
    to_numpy,
)
from tracetorch.snn.parameters import negative_softplus, softplus
from tracetorch.snn.sequence_layer import SequenceLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Thresholds: TypeAlias = SequenceLayer | Tensor | float | Sequence[Tensor | float]


@describe_plot
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

    Shape:
        ``[T, B, ...]`` each; x in time steps from 0, or in ms; y in units of the state.

    Example:
        >>> layer = LIF(2, beta=0.5)
        >>> mem, out = torch.tensor([0.6, 0.9, 0.1]).reshape(3, 1, 1).expand(3, 1, 2), None
        >>> ax = state_trace({"0.mem": mem}, neurons=1, thresholds=layer)
        >>> [line.get_label() for line in ax.lines][:2]
        ['0.mem', 'threshold']
    """
    layers = check_recording("state_trace", states)
    traces = {path: select_sample("state_trace", path, v, sample) for path, v in layers.items()}
    # one set of neurons, spikes and thresholds: all states must be of one layer
    (steps, size), *others = dict.fromkeys(trace.shape for trace in traces.values())
    requested = neurons if isinstance(neurons, Sequence) else [neurons]
    selected = [check_index("state_trace: neurons", neuron, size) for neuron in requested]
    layer_spikes = None
    if spikes is not None:
        (checked,) = check_recording("state_trace: spikes", spikes).values()
        layer_spikes = select_sample("state_trace: spikes", "", checked, sample)
        others += [layer_spikes.shape] if layer_spikes.shape != (steps, size) else []
    if others:
        raise ValueError(
            f"state_trace: the states and spikes of one layer have as many steps and neurons, got "
            f"{[steps, size]} and {list(others[0])}. Pass what is of a single layer."
        )
    shape = next(iter(layers.values())).shape
    levels = _threshold_levels(thresholds, shape[1:] if sample is None else shape[2:])
    time = TimeScale.of("state_trace", dt)

    ax = get_axes(ax, (6.4, 2.6))
    # the colours go by lines, over all states and neurons
    lines = [(path, neuron) for path in traces for neuron in selected]
    colours = {line: COLOURS[number % len(COLOURS)] for number, line in enumerate(lines)}
    for (path, neuron), colour in colours.items():
        indexed = f"{path}[{neuron}]" if path else f"neuron {neuron}"
        label = path if path and len(selected) == 1 else indexed
        at = time.at(np.arange(steps))
        ax.plot(at, traces[path][:, neuron], color=colour, linewidth=1.4, label=label)
    # several states of a neuron have several colours; its thresholds and spikes then have none
    one_state = len(traces) == 1
    colour_by_neuron = {neuron: c for (_, neuron), c in colours.items()} if one_state else {}
    _draw_thresholds(ax, levels, selected, colour_by_neuron)
    if layer_spikes is not None:
        _draw_spikes(ax, time, layer_spikes, selected, colour_by_neuron)
    state = next(iter(traces)).rpartition(".")[2] if len(traces) == 1 else ""
    ax.set(ylabel=state or "state")
    time.show(ax, steps)
    return finished(ax, title, legend=len(ax.lines) > 1 or len(selected) == 1)


def _threshold_levels(thresholds: Thresholds, shape: torch.Size) -> list[Array]:
    """Expand every threshold to a value per neuron, ``[N]``, for states of ``shape`` at a step."""
    if isinstance(thresholds, SequenceLayer):
        given = thresholds.step_kwargs(len(shape) + 1, torch.float64)  # of a step with its batch
        kinds = (softplus, negative_softplus)
        values = [given[n].detach() for n, each in thresholds.constraints.items() if each in kinds]
        values = [v.reshape(*[1] * (len(shape) - v.ndim), *v.shape) for v in values]
    else:
        several = thresholds if isinstance(thresholds, Sequence) else [thresholds]
        values = [torch.as_tensor(value) for value in several]
        values = [v.reshape(shape) if v.numel() == shape.numel() else v for v in values]
    levels = []
    for value in values:
        level = value.reshape([1] * len(shape)) if value.numel() == 1 else value
        if level.ndim != len(shape) or any(
            n not in (1, size) for n, size in zip(level.shape, shape, strict=True)
        ):
            raise ValueError(
                f"state_trace: a threshold has shape {list(value.shape)}, one step of a sample of "
                f"the states {list(shape)}. Pass the layer whose states they are, a number, or one "
                "per neuron."
            )
        levels.append(to_numpy(level.expand(shape).reshape(-1)))
    return levels


def _draw_thresholds(
    ax: Axes, levels: list[Array], selected: list[int], colours: dict[int, str]
) -> None:
    """Draw dashed lines: one where all neurons agree, otherwise one per neuron in its colour."""
    style: Any = {"linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1, "label": "threshold"}
    for level in levels:
        # layers with one threshold for all neurons are common; one line is enough for them
        shared = len({float(level[neuron]) for neuron in selected}) == 1
        for neuron in selected[:1] if shared else selected:
            colour = INK if shared else colours.get(neuron, INK)
            ax.axhline(float(level[neuron]), color=colour, **style)
            style["label"] = "_"  # one entry in the legend


def _draw_spikes(
    ax: Axes, time: TimeScale, layer_spikes: Array, selected: list[int], colours: dict[int, str]
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
            fired = time.at(np.nonzero(sign * layer_spikes[:, neuron] > 0)[0])
            style: Any = {"colors": colours.get(neuron, INK), "linewidth": 1.2}
            ax.vlines(fired, bottom, bottom + sign * 0.75 * row, **style)
        limit = start + sign * (0.4 + len(selected)) * row
        low, high = min(low, limit), max(high, limit)
    ax.set_ylim(low, high)
