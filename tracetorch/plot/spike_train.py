"""Draw a list of spike trains as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.plot.axes import INK, get_axes, set_title
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    values = np.stack([flat_numbers("spike_train", row) for row in list_of_tensors])
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
    set_title(ax, title)
    return ax
