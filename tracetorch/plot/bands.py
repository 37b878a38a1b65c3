"""Lay out layers as horizontal bands of one axes, neurons from the top down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracetorch.plot.axes import FAINT, set_integer_ticks
from tracetorch.plot.recorded import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def row_edges(layer: int, rows: int, layers: int) -> Array:
    """Compute the y positions of the edges between the rows of a layer, ``[rows + 1]``.

    The rows of a single layer have height 1, the first around 0. Of several layers each has a band
    of height 1: a readout of ten neurons would be invisible beside thousands.
    """
    if layers == 1:
        return np.arange(rows + 1) - 0.5
    # 2 % of a band above and below its rows separate it from the next
    return layer + 0.02 + 0.96 * np.arange(rows + 1) / max(rows, 1)


def label_bands(ax: Axes, names: Sequence[str], rows: int) -> None:
    """Label the bands with the names of their layers, or the rows of a single layer as neurons."""
    if len(names) == 1:
        ax.set(ylim=(max(rows, 1) - 0.5, -0.5), ylabel=names[0] or "neuron")
        set_integer_ticks(ax, "x", "y")
        return
    ax.set(ylim=(len(names), 0), yticks=np.arange(len(names)) + 0.5, yticklabels=names)
    ax.tick_params(axis="y", length=0)
    for line in range(1, len(names)):
        ax.axhline(line, color=FAINT, linewidth=0.8, zorder=0)
    set_integer_ticks(ax, "x")


def neuron_count_label(path: str, shown: int, total: int) -> str:
    """Label a layer with its path, its number of neurons, and how many of them are shown."""
    neurons = "neuron" if total == 1 else "neurons"
    count = f"{total:,} {neurons}" if shown == total else f"{shown} of {total:,} {neurons}"
    return f"{path}\n{count}" if path else count
