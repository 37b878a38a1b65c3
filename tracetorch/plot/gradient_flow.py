"""How much gradient reaches each layer, at each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.canvas import FAINT, HEAT, canvas, titled, whole_numbers
from tracetorch.plot.recorded import array, tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BROKEN = "#ff2d2d"


def gradient_flow(
    gradients: Mapping[str, Tensor],
    *,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of gradient norms: layers from the first on top to the last, time to the right.

    The colour is the L2 norm over samples and neurons, on a logarithmic scale; steps that no
    gradient reaches (a norm of exactly 0) are grey, those where it is not finite red.

    Args:
        gradients: by path, of what was recorded.
        title: above the axes.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Shape:
        ``[T, ...]`` each; x in time steps.

    Raises:
        TypeError: it is not a dict of tensors.
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
            "those of what tt.unroll(..., record=...) has seen."
        )
    found = tensors("gradient_flow", gradients)
    norms = np.stack(
        [
            np.linalg.norm(array(value).reshape(len(value), -1).astype(np.float64), axis=1)
            for value in found.values()
        ]
    )  # [layers, T]
    finite = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 1.0)

    ax = canvas(ax, (6.4, 1.6 + 0.4 * len(norms)))
    from matplotlib.colors import ListedColormap, LogNorm

    if low == high:  # a scale needs two ends
        low, high = low / 10**0.5, high * 10**0.5
    columns, rows = np.arange(norms.shape[1] + 1) - 0.5, np.arange(len(norms) + 1)
    ax.set_facecolor(FAINT)
    mesh = ax.pcolormesh(
        columns,
        rows,
        np.ma.masked_where(~np.isfinite(norms) | (norms == 0), norms),
        cmap=HEAT,
        norm=LogNorm(low, high),
        rasterized=True,
    )
    if not np.isfinite(norms).all():
        broken = np.ma.masked_where(np.isfinite(norms), np.ones_like(norms))
        ax.pcolormesh(columns, rows, broken, cmap=ListedColormap([BROKEN]), rasterized=True)
    ax.set(xlim=(columns[0], columns[-1]), ylim=(len(norms), 0), xlabel="time step")
    ax.set_yticks(rows[:-1] + 0.5, list(found))
    ax.tick_params(axis="y", length=0)
    whole_numbers(ax, "x")
    ax.figure.colorbar(mesh, ax=ax, label="gradient norm")
    titled(ax, title)
    return ax
