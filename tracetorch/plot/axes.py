"""Create matplotlib axes, and the style, axis of time, bands and arguments that plots share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.checks import check_positive, require
from tracetorch.core.docstrings import SharedDescriptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6690", "#d1495b", "#6a8d3f", "#7b5ea7", "#d98e32", "#3a9d9d", "#8c6d5a", "#c06c9b")
INK, MUTED, FAINT = "#33373d", "#8a9099", "#d5d9df"
COLOURMAP = "viridis"

Steps = TypeVar("Steps", float, NDArray[Any])

# the arguments that many plots have
describe_plot = SharedDescriptions(
    {
        "title": "title of the axes.",
        "ax": "axes to draw on; if left out, new axes on a new figure.",
        "spikes": "outputs, or a dict of them by path. Dimensions after the batch are flattened to "
        "neurons.",
        "sample": "index in the batch; ``None`` for ``[T, ...]`` without one.",
        "dt": "duration of a step in milliseconds, for time in ms and rates in Hz; ``None``: in "
        "steps.",
    },
    raises={
        "TypeError, ValueError": "an argument is of the wrong type, out of range or empty, or does "
        "not fit the others."
    },
)


def get_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 3.2)) -> Axes:
    """Return ``ax``, or new axes on a new figure, which neither pyplot nor a window shows."""
    require("matplotlib", extra="plot", by="tt.plot")
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=size, layout="constrained").add_subplot()
    elif not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be matplotlib axes, got {type(ax).__name__}. Of several axes pass one: "
            "axes[0]; leave ax out for a new figure."
        )
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def set_integer_ticks(ax: Axes, *names: str) -> None:
    """Set the ticks of the axes ``"x"``, ``"y"`` to whole numbers only, few of them."""
    from matplotlib.ticker import MaxNLocator

    for name in names:
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


@dataclass(frozen=True)
class TimeScale:
    """Scale of the axis of time: steps, or milliseconds; a step is drawn in its middle."""

    dt: float | None  # duration of a step in milliseconds; None: time is counted in steps

    @classmethod
    def of(cls, caller: str, dt: object) -> TimeScale:
        """Return the scale for a ``dt``; raise where that is neither positive nor ``None``."""
        return cls(None if dt is None else check_positive(f"{caller}: dt", dt, unit="milliseconds"))

    def at(self, steps: Steps) -> Steps:
        return steps if self.dt is None else (steps + 0.5) * self.dt

    @property
    def rate_unit(self) -> float:
        """Size of one spike per step on the axis of rates: 1, or in Hz."""
        return 1.0 if self.dt is None else 1000.0 / self.dt

    @property
    def rate_name(self) -> str:
        return "spikes per step" if self.dt is None else "Hz"

    def show(self, ax: Axes, steps: int) -> None:
        """Set limits, ticks and label of the axis for a number of steps."""
        from matplotlib.ticker import MaxNLocator

        ax.set(xlim=(self.at(-0.5), self.at(steps - 0.5)))
        ax.set(xlabel="time step" if self.dt is None else "time (ms)")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if self.dt is None:
            set_integer_ticks(ax, "x")


def set_title(ax: Axes, title: str | None) -> None:
    if title:
        ax.set_title(title, fontsize="medium")


def finished(ax: Axes, title: str | None, *, legend: bool = False) -> Axes:
    """Return axes with their title, and with a legend beside them, where it hides nothing."""
    if legend:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        ax.legend(**place, borderaxespad=0.0, frameon=False, fontsize="small")
    set_title(ax, title)
    return ax


def row_edges(layer: int, rows: int, layers: int) -> NDArray[Any]:
    """Return the y positions of the edges between the rows of a layer, ``[rows + 1]``."""
    if layers == 1:
        return np.arange(rows + 1) - 0.5
    # a band of height 1 for each: a readout of ten neurons would be invisible beside thousands;
    # 2 % of a band above and below its rows separate it from the next
    return layer + 0.02 + 0.96 * np.arange(rows + 1) / max(rows, 1)


def label_bands(ax: Axes, layers: Sequence[tuple[str, int, int]]) -> None:
    """Label layers by path, neurons that are shown and all; rows of a single one are neurons."""
    names = []
    for path, shown, total in layers:
        neurons = "neuron" if total == 1 else "neurons"
        count = f"{total:,} {neurons}" if shown == total else f"{shown} of {total:,} {neurons}"
        names.append(f"{path}\n{count}" if path else count)
    if len(names) == 1:
        ax.set(ylim=(max(layers[0][1], 1) - 0.5, -0.5), ylabel=names[0])
        set_integer_ticks(ax, "x", "y")
        return
    ax.set(ylim=(len(names), 0), yticks=np.arange(len(names)) + 0.5, yticklabels=names)
    ax.tick_params(axis="y", length=0)
    for line in range(1, len(names)):
        ax.axhline(line, color=FAINT, linewidth=0.8, zorder=0)
    set_integer_ticks(ax, "x")
