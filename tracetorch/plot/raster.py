"""Draw a raster plot of spikes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetorch.core.checks import check_count
from tracetorch.plot.axes import (
    COLOURS,
    INK,
    TimeScale,
    get_axes,
    label_bands,
    neuron_count_label,
    row_edges,
    set_title,
)
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import Array, Recorded, check_recording, select_sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_VECTOR_TICKS = 20_000  # more ticks become pixels, in a PDF or SVG too


@describe_plot
def raster(
    spikes: Recorded,
    *,
    sample: int | None = 0,
    limit: int | None = None,
    dt: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a spike raster: a tick wherever an output is not zero, negative spikes in red.

    The layers of a dict are drawn below each other, in bands of equal height.

    Args:
        limit: maximum number of neurons shown per layer: evenly from the most active, on top, to
            the least active of those that fire.

    Shape:
        ``[T, B, ...]`` each; x in time steps from 0, or in ms; y in neurons.

    Example:
        >>> x = torch.zeros(5, 1, 3)
        >>> x[2, 0, 1] = 1
        >>> ax = raster(x)
        >>> ax.get_xlabel(), ax.collections[0].get_segments()[0].tolist()
        ('time step', [[2.0, 0.6], [2.0, 1.4]])
    """
    layers = check_recording("raster", spikes)
    if limit is not None:
        limit = check_count("raster: limit", limit)
    time = TimeScale.of("raster", dt)
    # everything is checked before anything is drawn on the axes of the caller
    drawn: list[tuple[str, Array, int]] = []
    for path, value in layers.items():
        layer_spikes = select_sample("raster", path, value, sample)
        shown = layer_spikes if limit is None else _most_active(layer_spikes, limit)
        drawn.append((path, shown, layer_spikes.shape[1]))

    ax = get_axes(ax, (6.4, 2.4 + 0.7 * (len(drawn) - 1)))
    steps = len(drawn[0][1])
    for number, (_, shown, _) in enumerate(drawn):
        colour = COLOURS[0] if len(drawn) == 1 else INK
        _draw_ticks(ax, time, shown, row_edges(number, shown.shape[1], len(drawn)), colour)
    names = [neuron_count_label(path, shown.shape[1], total) for path, shown, total in drawn]
    label_bands(ax, names, drawn[0][1].shape[1])
    time.show(ax, steps)
    set_title(ax, title)
    return ax


def _draw_ticks(ax: Axes, time: TimeScale, spikes: Array, border: Array, colour: str) -> None:
    """Draw a tick for every spike between the borders of its neuron's row."""
    for sign, shade in ((1, colour), (-1, COLOURS[1])):
        step, row = np.nonzero(sign * spikes > 0)
        # an empty collection of positive spikes keeps a silent layer on the axes
        if sign < 0 and len(step) == 0:
            continue
        # ticks of neighbouring neurons do not touch
        gap = 0.1 * (border[1] - border[0]) if spikes.shape[1] else 0.0
        ax.vlines(
            time.at(step),
            border[row] + gap,
            border[row + 1] - gap,
            colors=shade,
            linewidth=1.2 if len(spikes) <= 200 else 0.8,
            rasterized=len(step) > MAX_VECTOR_TICKS,
        )


def _most_active(spikes: Array, limit: int) -> Array:
    """Select neurons ``[T, <= limit]`` evenly by activity, without those that never fire."""
    count = (spikes != 0).sum(0)
    active = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    selected = np.linspace(0, max(len(active) - 1, 0), min(limit, len(active))).astype(int)
    return spikes[:, active[selected]]
