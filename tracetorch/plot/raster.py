"""Draw spikes as rasters: of recorded layers, and of a list of spike trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tracetorch.core.checks import check_count, check_positive
from tracetorch.plot.axes import (
    COLOURS,
    INK,
    TimeScale,
    describe_plot,
    finished,
    get_axes,
    label_bands,
    row_edges,
    set_integer_ticks,
)
from tracetorch.plot.recorded import Array, Recorded, check_recording, flat_numbers, select_sample

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
    label_bands(ax, [(path, shown.shape[1], total) for path, shown, total in drawn])
    time.show(ax, steps)
    return finished(ax, title)


def _draw_ticks(ax: Axes, time: TimeScale, spikes: Array, border: Array, colour: str) -> None:
    for sign, shade in ((1, colour), (-1, COLOURS[1])):
        step, row = np.nonzero(sign * spikes > 0)
        # an empty collection of positive spikes keeps a silent layer on the axes
        if sign < 0 and len(step) == 0:
            continue
        # ticks of neighbouring neurons do not touch
        gap = 0.1 * (border[1] - border[0]) if spikes.shape[1] else 0.0
        width, many = 1.2 if len(spikes) <= 200 else 0.8, len(step) > MAX_VECTOR_TICKS
        style: dict[str, Any] = {"colors": shade, "linewidth": width, "rasterized": many}
        ax.vlines(time.at(step), border[row] + gap, border[row + 1] - gap, **style)


def _most_active(spikes: Array, limit: int) -> Array:
    """Select neurons ``[T, <= limit]`` evenly by activity, without those that never fire."""
    count = (np.abs(spikes) > 0).sum(0)  # NaN is no spike
    active = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    selected = np.linspace(0, max(len(active) - 1, 0), min(limit, len(active))).astype(int)
    return spikes[:, active[selected]]


@describe_plot
def spike_train(
    list_of_tensors: Sequence[Tensor] | Tensor,
    spacing: float = 1.0,
    linelength: float = 0.8,
    linewidth: float = 0.5,
    title: str = "Spike Train Raster",
    use_imshow: bool = True,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw rows of values over time, the first on top: shades of grey, or ticks where not zero.

    Shades are of the absolute value: 0 is white, and 1, or the highest value beyond, is black. For
    recordings of :func:`tracetorch.unroll` use :func:`tracetorch.plot.raster`.

    Args:
        list_of_tensors: one row per neuron, all of one length ``[T]``; or a tensor ``[N, T]``.
        spacing: distance between rows.
        linelength: length of a tick; without ``use_imshow``.
        linewidth: width of a tick in points; without ``use_imshow``.
        use_imshow: draw shades of grey; otherwise ticks.

    Shape:
        N rows of ``[T]``; x in time steps from 0, y in neurons.

    Example:
        >>> ax = spike_train([torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])])
        >>> ax.images[0].get_array().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.5]]
    """
    values = np.stack([flat_numbers(row) for row in list_of_tensors])
    spacing = check_positive("spike_train: spacing", spacing)
    (count, steps), end = values.shape, spacing * (len(values) - 0.5)

    ax = get_axes(ax, (6.4, 2.4))
    if use_imshow:
        # spikes of both signs are dark
        sizes, extent = np.abs(values), (-0.5, steps - 0.5, end, -0.5 * spacing)
        style: dict[str, Any] = {"cmap": "gray_r", "aspect": "auto", "interpolation": "nearest"}
        ax.imshow(sizes, vmin=0.0, vmax=max(1.0, float(sizes.max())), extent=extent, **style)
    else:
        row, step = np.nonzero(values)
        low, high = spacing * row - linelength / 2, spacing * row + linelength / 2
        ax.vlines(step, low, high, colors=INK, linewidth=linewidth)
    labelled = np.arange(0, count, max(1, -(-count // 12)))  # at most 12
    ax.set_yticks(spacing * labelled, [str(n) for n in labelled])
    ax.set(xlim=(-0.5, steps - 0.5), ylim=(end, -0.5 * spacing))
    ax.set(xlabel="time step", ylabel="neuron")
    set_integer_ticks(ax, "x")
    return finished(ax, title)
