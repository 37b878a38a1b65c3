"""A list of values as a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.canvas import COLOURS, canvas, legend, titled, whole_numbers
from tracetorch.plot.recorded import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line_graph(
    list_of_values: Sequence[float | Tensor] | Tensor,
    title: str,
    label: str | None = None,
    *,
    xlabel: str = "step",
    ax: Axes | None = None,
) -> Axes:
    """A value over steps, say a loss over training; draw again on the same ``ax`` to compare.

    Args:
        list_of_values: numbers, or tensors of one element each.
        title: above the axes.
        label: of the line, in a legend beside the axes.
        xlabel: what the values were counted in.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Raises:
        TypeError: the values are not numbers.
        ValueError: there are none.

    Example:
        >>> ax = line_graph([0.9, torch.tensor(0.5), 0.4], "loss", "training")
        >>> ax.lines[0].get_ydata().tolist()
        [0.9, 0.5, 0.4]

    """
    values = plain("line_graph", list_of_values)
    if not len(values):
        raise ValueError("line_graph: there are no values.")
    ax = canvas(ax)
    colour = COLOURS[len(ax.lines) % len(COLOURS)]
    ax.plot(np.arange(len(values)), values, color=colour, linewidth=1.4, label=label or "_")
    ax.set(xlabel=xlabel)
    whole_numbers(ax, "x")
    if ax.get_legend_handles_labels()[0]:
        legend(ax)
    titled(ax, title)
    return ax
