"""Draw firing rates: a histogram over neurons, a heat map over neurons and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetorch.core.checks import check_count
from tracetorch.plot.axes import COLOURMAP, COLOURS, TimeScale, add_legend, get_axes, set_title
from tracetorch.plot.bands import label_bands, neuron_count_label, row_edges
from tracetorch.plot.recorded import Array, Recorded, check_recording, flatten_neurons

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rate_histogram(
    spikes: Recorded,
    *,
    bins: int = 30,
    dt: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a histogram of firing rates, in spikes per step or in Hz, over all steps and samples.

    A spike is an output that is not zero. The legend has the mean rate of each layer and its share
    of silent neurons, which never fire.

    Args:
        spikes: outputs, or a dict of them by path. Dimensions after the batch are flattened to
            neurons.
        bins: number of bars from 0 to the highest rate.
        dt: duration of a step in milliseconds, for rates in Hz; ``None``: in spikes per step.
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        ``[T, B, ...]`` each; x in spikes per step or Hz, y in percent of a layer's neurons.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a tensor has no batch or no neurons; ``bins`` is less than 1, or ``dt`` not
            positive.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).reshape(2, 1, 2)
        >>> ax = rate_histogram(x, bins=2)
        >>> ax.patches[0].get_data().values.tolist()
        [50.0, 50.0]
    """
    layers = check_recording("rate_histogram", spikes)
    bins = check_count("rate_histogram: bins", bins)
    dt = TimeScale.of("rate_histogram", dt).dt
    unit = 1.0 if dt is None else 1000.0 / dt
    rates = {
        path: unit * (flatten_neurons("rate_histogram", path, value) != 0).mean((0, 1))
        for path, value in layers.items()
    }
    # one range for all layers; 1 where all are silent, since an axis needs a range
    highest = max(float(rate.max()) for rate in rates.values()) or unit

    ax = get_axes(ax)
    # in percent of a layer, so that layers of different size compare
    for number, (path, rate) in enumerate(rates.items()):
        count, border = np.histogram(rate, bins=bins, range=(0.0, highest))
        silent = 100 * float((rate == 0).mean())
        colour = COLOURS[number % len(COLOURS)]
        ax.stairs(
            100 * count / len(rate),
            border,
            facecolor=(colour, 0.3),
            edgecolor=colour,
            linewidth=1.2,
            fill=True,
            label=f"{path or 'all neurons'}\nmean {rate.mean():.3g}, {silent:.3g} % silent",
        )
    name = "spikes per step" if dt is None else "Hz"
    ax.set(xlabel=f"firing rate ({name})", ylabel="share of neurons (%)")
    ax.set(xlim=(0.0, highest), ylim=(0.0, None))
    add_legend(ax)
    set_title(ax, title)
    return ax


def rate_map(
    spikes: Recorded,
    *,
    window: int = 1,
    dt: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map of firing rates: neurons from top to bottom, time from left to right.

    The colour is the share of outputs that are not zero, over samples and ``window`` steps. A last
    partial window is averaged over its own steps. The layers of a dict are drawn below each other,
    in bands of equal height and with one colour scale.

    Args:
        spikes: outputs, or a dict of them by path. Dimensions after the batch are flattened to
            neurons.
        window: number of steps averaged in one column.
        dt: duration of a step in milliseconds, for time in ms and rates in Hz; ``None``: steps.
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        ``[T, B, ...]`` each; x in time steps or ms, y in neurons, colour in spikes per step or Hz.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a tensor has no batch or no neurons; ``window`` is less than 1, or ``dt`` not
            positive.

    Example:
        >>> x = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1)
        >>> ax = rate_map(x, window=2)
        >>> ax.collections[0].get_array().ravel().tolist()
        [0.5, 1.0]
    """
    layers = check_recording("rate_map", spikes)
    window = check_count("rate_map: window", window)
    time = TimeScale.of("rate_map", dt)
    unit = 1.0 if time.dt is None else 1000.0 / time.dt
    maps = {
        path: unit * _windows((flatten_neurons("rate_map", path, value) != 0).mean(1), window)
        for path, value in layers.items()
    }
    steps = len(next(iter(layers.values())))
    highest = max(float(rate.max()) for rate in maps.values()) or unit

    ax = get_axes(ax, (6.4, 2.8 + 0.7 * (len(maps) - 1)))
    # edges of the windows; a step is centred on its number, and the last window may be shorter
    columns = np.append(np.arange(0, steps, window), steps) - 0.5
    mesh = None
    for number, rate in enumerate(maps.values()):
        mesh = ax.pcolormesh(
            time.at(columns),
            row_edges(number, rate.shape[1], len(maps)),
            rate.T,
            cmap=COLOURMAP,
            vmin=0.0,
            vmax=highest,
            rasterized=True,
        )
    names = [neuron_count_label(path, rate.shape[1], rate.shape[1]) for path, rate in maps.items()]
    label_bands(ax, names, next(iter(maps.values())).shape[1])
    time.show(ax, steps)
    if mesh is not None:
        ax.figure.colorbar(mesh, ax=ax, label="spikes per step" if time.dt is None else "Hz")
    set_title(ax, title)
    return ax


def _windows(rate: Array, window: int) -> Array:
    """Average over ``window`` steps: ``[T, N]`` to ``[ceil(T / window), N]``."""
    # reduceat sums from each start to the next; the last window may be shorter
    starts = np.arange(0, len(rate), window)
    lengths = np.diff(np.append(starts, len(rate)))
    means: Array = np.add.reduceat(rate, starts, axis=0) / lengths[:, None]
    return means
