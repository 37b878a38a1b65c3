"""Draw gradient norms of layers over time as a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.axes import COLOURMAP, FAINT, get_axes, set_integer_ticks, set_title
from tracetorch.plot.recorded import check_recording, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_FINITE_COLOUR = "#ff2d2d"


def gradient_flow(
    gradients: Mapping[str, Tensor], *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a heat map of gradient norms: layers from top to bottom, time from left to right.

    The colour is the L2 norm over samples and neurons, on a logarithmic scale. Steps with a norm of
    exactly 0, which no gradient reaches, are grey; those where it is not finite are red.

    Args:
        gradients: gradients of recorded tensors, by path.
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        ``[T, ...]`` each; x in time steps.

    Raises:
        TypeError: ``gradients`` is not a dict of tensors.
        ValueError: it is empty, or the tensors differ in their number of steps.

    Example:
        >>> from tracetorch import unroll
        >>> net = nn.Sequential(nn.Linear(2, 3), LIF(3), nn.Linear(3, 1), Readout(1))
        >>> y, seen = unroll(net, torch.rand(6, 4, 2), record="output")
        >>> slopes = torch.autograd.grad(y[-1].sum(), list(seen.values()))
        >>> ax = gradient_flow(dict(zip(seen, slopes)))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['1.output', '3.output']
    """
    if not isinstance(gradients, Mapping):
        raise TypeError(
            "gradient_flow takes a dict from paths to gradients [T, ...], got "
            f"{type(gradients).__name__}. torch.autograd.grad(loss, list(seen.values())) gives "
            "those of seen, the recording that tt.unroll(..., record=...) returns."
        )
    tensors = check_recording("gradient_flow", gradients)
    # in float64: squares of small half-precision gradients would underflow
    norms = np.stack(
        [
            np.linalg.norm(to_numpy(value).reshape(len(value), -1).astype(np.float64), axis=1)
            for value in tensors.values()
        ]
    )  # [layers, T]
    finite = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 1.0)

    ax = get_axes(ax, (6.4, 1.6 + 0.4 * len(norms)))
    from matplotlib.colors import ListedColormap, LogNorm

    if low == high:  # a logarithmic scale needs a range
        low, high = low / 10**0.5, high * 10**0.5
    # edges of the cells: a step is centred on its number
    columns, rows = np.arange(norms.shape[1] + 1) - 0.5, np.arange(len(norms) + 1)
    # masked cells show the background
    ax.set_facecolor(FAINT)
    mesh = ax.pcolormesh(
        columns,
        rows,
        np.ma.masked_where(~np.isfinite(norms) | (norms == 0), norms),
        cmap=COLOURMAP,
        norm=LogNorm(low, high),
        rasterized=True,
    )
    if not np.isfinite(norms).all():
        not_finite = np.ma.masked_where(np.isfinite(norms), np.ones_like(norms))
        ax.pcolormesh(
            columns, rows, not_finite, cmap=ListedColormap([NOT_FINITE_COLOUR]), rasterized=True
        )
    ax.set(xlim=(columns[0], columns[-1]), ylim=(len(norms), 0), xlabel="time step")
    ax.set_yticks(rows[:-1] + 0.5, list(tensors))
    ax.tick_params(axis="y", length=0)
    set_integer_ticks(ax, "x")
    ax.figure.colorbar(mesh, ax=ax, label="gradient norm")
    set_title(ax, title)
    return ax
