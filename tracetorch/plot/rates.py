"""Draw firing rates over neurons and time, and gradient norms of layers over time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tracetorch.core.checks import check_count
from tracetorch.plot.axes import (
    COLOURMAP,
    COLOURS,
    FAINT,
    TimeScale,
    describe_plot,
    finished,
    get_axes,
    label_bands,
    row_edges,
    set_integer_ticks,
)
from tracetorch.plot.recorded import Array, Recorded, check_recording, flatten_neurons, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


@describe_plot
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
        bins: number of bars from 0 to the highest rate.

    Shape:
        ``[T, B, ...]`` each; x in spikes per step or Hz, y in percent of a layer's neurons.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).reshape(2, 1, 2)
        >>> ax = rate_histogram(x, bins=2)
        >>> ax.patches[0].get_data().values.tolist()
        [50.0, 50.0]
    """
    layers = check_recording("rate_histogram", spikes)
    bins = check_count("rate_histogram: bins", bins)
    time = TimeScale.of("rate_histogram", dt)
    rates = {
        path: time.rate_unit * _fired("rate_histogram", path, value).mean((0, 1))
        for path, value in layers.items()
    }
    # one range for all layers; 1 where all are silent, since an axis needs a range
    highest = max(float(rate.max()) for rate in rates.values()) or time.rate_unit

    ax = get_axes(ax)
    # in percent of a layer, so that layers of different size compare
    for number, (path, rate) in enumerate(rates.items()):
        count, border = np.histogram(rate, bins=bins, range=(0.0, highest))
        silent = 100 * float((rate == 0).mean())
        colour = COLOURS[number % len(COLOURS)]
        label = f"{path or 'all neurons'}\nmean {rate.mean():.3g}, {silent:.3g} % silent"
        style: Any = {"facecolor": (colour, 0.3), "edgecolor": colour, "linewidth": 1.2}
        ax.stairs(100 * count / len(rate), border, fill=True, label=label, **style)
    ax.set(xlabel=f"firing rate ({time.rate_name})", ylabel="share of neurons (%)")
    ax.set(xlim=(0.0, highest), ylim=(0.0, None))
    return finished(ax, title, legend=True)


@describe_plot
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
        window: number of steps averaged in one column.

    Shape:
        ``[T, B, ...]`` each; x in time steps or ms, y in neurons, colour in spikes per step or Hz.

    Example:
        >>> x = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1)
        >>> ax = rate_map(x, window=2)
        >>> ax.collections[0].get_array().ravel().tolist()
        [0.5, 1.0]
    """
    layers = check_recording("rate_map", spikes)
    window = check_count("rate_map: window", window)
    time = TimeScale.of("rate_map", dt)
    steps = len(next(iter(layers.values())))
    # edges of the windows; the last one may be shorter
    edges = np.append(np.arange(0, steps, window), steps)
    maps = {}
    for path, value in layers.items():
        rate = _fired("rate_map", path, value).mean(1)
        # reduceat sums from each start to the next
        means = np.add.reduceat(rate, edges[:-1], axis=0) / np.diff(edges)[:, None]
        maps[path] = time.rate_unit * means
    highest = max(float(rate.max()) for rate in maps.values()) or time.rate_unit

    ax = get_axes(ax, (6.4, 2.8 + 0.7 * (len(maps) - 1)))
    mesh = None
    style: Any = {"cmap": COLOURMAP, "vmin": 0.0, "vmax": highest, "rasterized": True}
    for number, rate in enumerate(maps.values()):
        rows = row_edges(number, rate.shape[1], len(maps))
        mesh = ax.pcolormesh(time.at(edges - 0.5), rows, rate.T, **style)  # centred on its number
    label_bands(ax, [(path, rate.shape[1], rate.shape[1]) for path, rate in maps.items()])
    time.show(ax, steps)
    if mesh is not None:
        ax.figure.colorbar(mesh, ax=ax, label=time.rate_name)
    return finished(ax, title)


def _fired(caller: str, path: str, value: Tensor) -> Array:
    """Mark the spikes of ``[T, B, ...]``, in ``[T, B, N]``."""
    flat = flatten_neurons(caller, path, value)
    if np.isnan(flat).any():
        raise ValueError(
            f"{caller}: {path!r} holds NaN, which is neither a spike nor silence. tt.diagnose "
            "names the layer where it begins."
        )
    fired: Array = flat != 0
    return fired


NOT_FINITE_COLOUR = "#ff2d2d"


@describe_plot
def gradient_flow(
    gradients: Mapping[str, Tensor], *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a heat map of gradient norms: layers from top to bottom, time from left to right.

    The colour is the L2 norm over samples and neurons, on a logarithmic scale. Steps with a norm of
    exactly 0, which no gradient reaches, are grey; those where it is not finite are red.

    Args:
        gradients: gradients of recorded tensors, by path.

    Shape:
        ``[T, ...]`` each; x in time steps.

    Example:
        >>> from tracetorch import unroll
        >>> net = nn.Sequential(nn.Linear(2, 3), LIF(3), nn.Linear(3, 1), Readout(1))
        >>> y, seen = unroll(net, torch.rand(6, 4, 2), record="output")
        >>> slopes = torch.autograd.grad(y[-1].sum(), list(seen.values()))
        >>> ax = gradient_flow(dict(zip(seen, slopes)))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['1.output', '3.output']
    """
    tensors = check_recording("gradient_flow", gradients)
    # in float64: squares of small half-precision gradients would underflow
    rows = [to_numpy(g).reshape(len(g), -1).astype(np.float64) for g in tensors.values()]
    norms = np.stack([np.linalg.norm(each, axis=1) for each in rows])  # [layers, T]
    ax = get_axes(ax, (6.4, 1.6 + 0.4 * len(norms)))
    from matplotlib.colors import ListedColormap, LogNorm

    # edges of the cells: a step is centred on its number
    columns, edges = np.arange(norms.shape[1] + 1) - 0.5, np.arange(len(norms) + 1)
    # masked cells show the background
    ax.set_facecolor(FAINT)
    draw = partial(ax.pcolormesh, columns, edges, rasterized=True)
    shown = np.ma.masked_where(~np.isfinite(norms) | (norms == 0), norms)
    low, high = (shown.min(), shown.max()) if shown.count() else (1.0, 1.0)
    # they differ, as a logarithmic scale needs
    ends = (low, high) if low < high else (low / 10**0.5, high * 10**0.5)
    mesh = draw(shown, cmap=COLOURMAP, norm=LogNorm(*ends))
    if not np.isfinite(norms).all():
        not_finite = np.ma.masked_where(np.isfinite(norms), np.ones_like(norms))
        draw(not_finite, cmap=ListedColormap([NOT_FINITE_COLOUR]))
    ax.set(xlim=(columns[0], columns[-1]), ylim=(len(norms), 0), xlabel="time step")
    ax.set_yticks(edges[:-1] + 0.5, list(tensors))
    ax.tick_params(axis="y", length=0)
    set_integer_ticks(ax, "x")
    ax.figure.colorbar(mesh, ax=ax, label="gradient norm")
    return finished(ax, title)
