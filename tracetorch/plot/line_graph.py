"""Draw a list of values as a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.plot.axes import COLOURS, add_legend, get_axes, set_integer_ticks, set_title
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@describe_plot
def line_graph(
    list_of_values: Sequence[float | Tensor] | Tensor,
    title: str,
    label: str | None = None,
    *,
    xlabel: str = "step",
    ax: Axes | None = None,
) -> Axes:
    """Draw values over steps, such as a loss; draw again on the same ``ax`` to compare.

    Args:
        list_of_values: numbers, or tensors of one element each.
        label: label of the line, in a legend beside the axes.
        xlabel: label of the x axis.

    Example:
        >>> ax = line_graph([0.9, torch.tensor(0.5), 0.4], "loss", "training")
        >>> ax.lines[0].get_ydata().tolist()
        [0.9, 0.5, 0.4]
    """
    values = flat_numbers("line_graph", list_of_values)
    ax = get_axes(ax)
    colour = COLOURS[len(ax.lines) % len(COLOURS)]
    ax.plot(np.arange(len(values)), values, color=colour, linewidth=1.4, label=label or "_")
    ax.set(xlabel=xlabel)
    set_integer_ticks(ax, "x")
    if ax.get_legend_handles_labels()[0]:
        add_legend(ax)
    set_title(ax, title)
    return ax
