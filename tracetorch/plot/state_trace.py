"""The states of neurons over time, the thresholds they are tested against, and their spikes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.plot.canvas import COLOURS, INK, canvas, legend, titled, whole_numbers
from tracetorch.plot.constrained import thresholds as thresholds_of
from tracetorch.plot.recorded import Array, Recorded, array, index, one_sample, tensors
from tracetorch.snn.neuron import Neuron

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Thresholds: TypeAlias = Neuron | Tensor | float | Sequence[Tensor | float]


def state_trace(
    states: Recorded,
    *,
    neurons: int | Sequence[int] = 0,
    spikes: Tensor | None = None,
    thresholds: Thresholds = (),
    sample: int | None = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """States over time, thresholds as dashed lines, spikes as ticks above (downward ones below).

    A membrane is recorded after its reset: it lies below its threshold at the step of a spike.

    Args:
        states: a state of a layer, or a dict of them by path: one line for each, and neuron.
        neurons: which neurons, by their number in what stands behind the batch, flattened.
        spikes: the layer's output.
        thresholds: the layer whose thresholds are meant, or their values: a number or one per
            neuron each, as they stand in the equations (a lower one is negative).
        sample: which of the batch; ``None`` for ``[T, ...]`` without one.
        title: above the axes.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Shape:
        ``[T, B, ...]`` each; x in time steps from 0, y in units of the state.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there is no such sample or neuron; the spikes or thresholds do not fit the
            states.

    Example:
        >>> layer = LIF(2, beta=0.5)
        >>> mem, out = torch.tensor([0.6, 0.9, 0.1]).reshape(3, 1, 1).expand(3, 1, 2), None
        >>> ax = state_trace({"0.mem": mem}, neurons=1, thresholds=layer)
        >>> [line.get_label() for line in ax.lines][:2]
        ['0.mem', 'threshold']

    """
    layers = tensors("state_trace", states)
    traces = {path: one_sample("state_trace", path, v, sample) for path, v in layers.items()}
    sizes = {path: trace.shape[1] for path, trace in traces.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"state_trace: the states of one layer have one number of neurons, got {sizes}. Give "
            "the states of a single layer."
        )
    steps, size = next(iter(traces.values())).shape
    asked = [neurons] if not isinstance(neurons, Sequence) else neurons
    chosen = [index("state_trace: neurons", neuron, size) for neuron in asked]
    if not chosen:
        raise ValueError("state_trace: neurons is empty. Name at least one, neurons=[0].")
    sent = None
    if spikes is not None:
        (spikes,) = tensors("state_trace: spikes", spikes).values()
        sent = one_sample("state_trace: spikes", "", spikes, sample)
        if sent.shape != (steps, size):
            raise ValueError(
                f"state_trace: spikes have {sent.shape[0]} steps of {sent.shape[1]} neurons, the "
                f"states {steps} of {size}. Give the same layer's output."
            )
    whole = next(iter(layers.values())).shape
    levels = _levels(thresholds, whole[1:] if sample is None else whole[2:])

    ax = canvas(ax, (6.4, 2.6))
    colours: list[tuple[int, str]] = []
    for path, trace in traces.items():
        for neuron in chosen:
            colour = COLOURS[len(colours) % len(COLOURS)]
            colours.append((neuron, colour))
            named = f"{path}[{neuron}]" if path else f"neuron {neuron}"
            label = path if path and len(chosen) == 1 else named
            ax.plot(np.arange(steps), trace[:, neuron], color=colour, linewidth=1.4, label=label)
    shades = dict(colours) if len(traces) == 1 else {}
    _draw_levels(ax, levels, chosen, shades)
    if sent is not None:
        _draw_spikes(ax, sent, chosen, shades)
    alone = next(iter(traces)) if len(traces) == 1 else ""
    ax.set(xlim=(-0.5, steps - 0.5), xlabel="time step", ylabel=alone.rpartition(".")[2] or "state")
    whole_numbers(ax, "x")
    if len(ax.lines) > 1 or len(chosen) == 1:
        legend(ax)
    titled(ax, title)
    return ax


def _levels(thresholds: Thresholds, shape: torch.Size) -> list[Array]:
    """Every threshold as one value per neuron, ``[N]``, for states of ``shape`` in one step."""
    size = shape.numel()
    if isinstance(thresholds, Neuron):
        levels = []
        for name, value in thresholds_of(thresholds).items():
            if value.ndim:
                after = -thresholds.dim - 1
                if thresholds.dim >= 0:  # counted with the batch
                    after = len(shape) - thresholds.dim
                if len(shape) <= after or shape[-after - 1] != len(value):
                    raise ValueError(
                        f"state_trace: {thresholds!r} has {len(value)} values of {name}, one step "
                        f"of a sample of the states has shape {list(shape)}. Give the layer whose "
                        "states they are."
                    )
                value = value.reshape(-1, *[1] * after)
            levels.append(array(value.expand(shape).reshape(-1)))
        return levels
    given = [thresholds] if isinstance(thresholds, (Tensor, float, int)) else list(thresholds)
    levels = []
    for number in given:
        if isinstance(number, bool) or not isinstance(number, (Tensor, float, int)):
            raise TypeError(
                "state_trace: thresholds must be a layer, numbers or tensors, got "
                f"{type(number).__name__}."
            )
        level = torch.as_tensor(number)
        if level.numel() not in (1, size):
            raise ValueError(
                f"state_trace: a threshold has shape {list(level.shape)}, the states have {size} "
                "neurons. Give one number, or one per neuron."
            )
        levels.append(array(level.reshape(-1).expand(size)))
    return levels


def _draw_levels(ax: Axes, levels: list[Array], chosen: list[int], colours: dict[int, str]) -> None:
    """Dashed lines: one where all neurons agree, otherwise one in each neuron's colour."""
    named = "threshold"
    for level in levels:
        shared = len({float(level[neuron]) for neuron in chosen}) == 1
        for neuron in chosen[:1] if shared else chosen:
            ax.axhline(
                float(level[neuron]),
                color=INK if shared else colours.get(neuron, INK),
                linewidth=1.0,
                linestyle=(0, (4, 3)),
                zorder=1,
                label=named,
            )
            named = "_"


def _draw_spikes(ax: Axes, sent: Array, chosen: list[int], colours: dict[int, str]) -> None:
    """Ticks in rows above and below everything, a row for each neuron."""
    low, high = ax.get_ylim()
    row = 0.07 * (high - low)
    for sign, start in ((1, high), (-1, low)):
        if not (sign * sent[:, chosen] > 0).any():
            continue
        for number, neuron in enumerate(chosen):
            foot = start + sign * (0.3 + number) * row
            ax.vlines(
                np.nonzero(sign * sent[:, neuron] > 0)[0],
                foot,
                foot + sign * 0.75 * row,
                colors=colours.get(neuron, INK),
                linewidth=1.2,
            )
        reach = start + sign * (0.4 + len(chosen)) * row
        low, high = min(low, reach), max(high, reach)
    ax.set_ylim(low, high)
