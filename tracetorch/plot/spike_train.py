"""Draw a list of spike trains as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.axes import INK, get_axes, set_title
from tracetorch.plot.recorded import Array, flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        title: title of the axes.
        use_imshow: draw shades of grey; otherwise ticks.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        N rows of ``[T]``; x in time steps from 0, y in neurons.

    Raises:
        TypeError: a row does not consist of numbers.
        ValueError: there are no rows, they differ in length, or ``spacing`` is not positive.

    Example:
        >>> ax = spike_train([torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])])
        >>> ax.images[0].get_array().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.5]]
    """
    rows = [flat_numbers("spike_train", row) for row in list_of_tensors]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths == [0]:
        raise ValueError(
            f"spike_train takes rows [T] of one length, got {len(rows)} of lengths {lengths}."
        )
    if not spacing > 0:
        raise ValueError(f"spike_train: spacing must be positive, got {spacing}.")
    values = np.stack(rows)
    (count, steps), end = values.shape, spacing * (len(rows) - 0.5)

    ax = get_axes(ax, (6.4, 2.4))
    if use_imshow:
        _draw_image(ax, np.abs(values), (-0.5, steps - 0.5, end, -0.5 * spacing))
    else:
        row, step = np.nonzero(values)
        low, high = spacing * row - linelength / 2, spacing * row + linelength / 2
        ax.vlines(step, low, high, colors=INK, linewidth=linewidth)
    labelled = np.arange(0, count, max(1, -(-count // 12)))  # at most 12
    ax.set_yticks(spacing * labelled, [str(n) for n in labelled])
    ax.set(xlim=(-0.5, steps - 0.5), ylim=(end, -0.5 * spacing))
    ax.set(xlabel="time step", ylabel="neuron")
    set_title(ax, title)
    return ax


def _draw_image(ax: Axes, sizes: Array, extent: tuple[float, float, float, float]) -> None:
    """Draw spikes as an image in which those of both signs are dark."""
    ax.imshow(
        sizes,
        cmap="gray_r",
        vmin=0.0,
        vmax=max(1.0, float(sizes.max())),
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
