"""Draw gradient norms of layers over time as a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.axes import COLOURMAP, FAINT, finished, get_axes, set_integer_ticks
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import check_recording, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
