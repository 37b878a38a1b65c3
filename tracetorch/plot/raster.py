"""The spikes of neurons over time, a tick each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetorch.core.checks import check_count
from tracetorch.plot.bands import counted, edges, frame
from tracetorch.plot.canvas import COLOURS, INK, canvas, titled
from tracetorch.plot.recorded import Array, Recorded, one_sample, tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 20_000  # more ticks than this are drawn as pixels, also in a PDF


def raster(
    spikes: Recorded,
    *,
    sample: int | None = 0,
    limit: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Spike raster: a tick wherever a neuron's output is not zero; downward spikes in red.

    A dict draws its layers above each other, the first on top, in bands of one height.

    Args:
        spikes: outputs, or a dict of them by path. Everything behind the batch counts as neurons.
        sample: which of the batch; ``None`` for ``[T, ...]`` without one.
        limit: show at most so many neurons of a layer: of those that fire, from the busiest (on
            top) to the quietest, evenly.
        title: above the axes.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Shape:
        ``[T, B, ...]`` each; x in time steps from 0, y in neurons.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a tensor has no batch or no such sample; ``limit`` is less than 1.

    Example:
        >>> x = torch.zeros(5, 1, 3)
        >>> x[2, 0, 1] = 1
        >>> ax = raster(x)
        >>> ax.get_xlabel(), ax.collections[0].get_segments()[0].tolist()
        ('time step', [[2.0, 0.6], [2.0, 1.4]])

    """
    layers = tensors("raster", spikes)
    if limit is not None:
        limit = check_count("raster: limit", limit)
    drawn: list[tuple[str, Array, int]] = []
    for path, value in layers.items():
        sent = one_sample("raster", path, value, sample)
        shown = sent if limit is None else _busiest(sent, limit)
        drawn.append((path, shown, sent.shape[1]))

    ax = canvas(ax, (6.4, 2.4 + 0.7 * (len(drawn) - 1)))
    steps = len(drawn[0][1])
    for number, (_, shown, _) in enumerate(drawn):
        colour = COLOURS[0] if len(drawn) == 1 else INK
        border = edges(number, shown.shape[1], len(drawn))
        for sign, shade in ((1, colour), (-1, COLOURS[1])):
            step, row = np.nonzero(sign * shown > 0)
            if sign < 0 and len(step) == 0:
                continue
            gap = 0.1 * (border[1] - border[0]) if shown.shape[1] else 0.0
            ax.vlines(
                step,
                border[row] + gap,
                border[row + 1] - gap,
                colors=shade,
                linewidth=1.2 if steps <= 200 else 0.8,
                rasterized=len(step) > MANY,
            )
    names = [counted(path, shown.shape[1], there) for path, shown, there in drawn]
    frame(ax, names, drawn[0][1].shape[1])
    ax.set(xlim=(-0.5, steps - 0.5), xlabel="time step")
    titled(ax, title)
    return ax


def _busiest(sent: Array, limit: int) -> Array:
    """Some neurons ``[T, <= limit]``, from the one that fires most to the quietest that fires."""
    count = (sent != 0).sum(0)
    active = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    return sent[
        :, active[np.linspace(0, max(len(active) - 1, 0), min(limit, len(active))).astype(int)]
    ]
