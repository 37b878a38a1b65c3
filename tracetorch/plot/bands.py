"""Layers above each other on one axes: a band each, its neurons from the top down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracetorch.plot.canvas import FAINT, whole_numbers
from tracetorch.plot.recorded import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def edges(layer: int, rows: int, layers: int) -> Array:
    """Where the rows of a layer begin and end, ``[rows + 1]``.

    A layer alone has one row per unit, the first row around 0. Of several each has a band of
    height 1, however many rows it has: a readout of ten would vanish beside thousands.
    """
    if layers == 1:
        return np.arange(rows + 1) - 0.5
    return layer + 0.02 + 0.96 * np.arange(rows + 1) / max(rows, 1)


def frame(ax: Axes, names: Sequence[str], rows: int) -> None:
    """Label the bands with their layers' names, or the one layer's rows as neurons."""
    if len(names) == 1:
        ax.set(ylim=(max(rows, 1) - 0.5, -0.5), ylabel=names[0] or "neuron")
        whole_numbers(ax, "x", "y")
        return
    ax.set(ylim=(len(names), 0), yticks=np.arange(len(names)) + 0.5, yticklabels=names)
    ax.tick_params(axis="y", length=0)
    for line in range(1, len(names)):
        ax.axhline(line, color=FAINT, linewidth=0.8, zorder=0)
    whole_numbers(ax, "x")


def counted(path: str, shown: int, there: int) -> str:
    """How a layer is labelled: its path, how many neurons it has, how many of them are shown."""
    neurons = "neuron" if there == 1 else "neurons"
    some = f"{there:,} {neurons}" if shown == there else f"{shown} of {there:,} {neurons}"
    return f"{path}\n{some}" if path else some
