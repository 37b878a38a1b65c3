"""Create matplotlib axes, and the style that all plots share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from tracetorch.core.checks import check_positive
from tracetorch.core.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6690", "#d1495b", "#6a8d3f", "#7b5ea7", "#d98e32", "#3a9d9d", "#8c6d5a", "#c06c9b")
INK, MUTED, FAINT = "#33373d", "#8a9099", "#d5d9df"
COLOURMAP = "viridis"

Steps = TypeVar("Steps", float, NDArray[Any])


def get_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 3.2)) -> Axes:
    """Return ``ax``, or new axes on a new figure, which neither pyplot nor a window shows.

    Args:
        ax: axes to draw on, or ``None``.
        size: size of the new figure in inches.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        TypeError: ``ax`` is not matplotlib axes.
    """
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
    """Scale of the axis of time: steps, or milliseconds.

    A step is an interval: step 0 lasts from 0 to ``dt``, and is drawn in its middle, where
    :meth:`tracetorch.probe.Recording.to_neo` has its spikes too.

    Args:
        dt: duration of a step in milliseconds; ``None``: time is counted in steps.
    """

    dt: float | None

    @classmethod
    def of(cls, caller: str, dt: object) -> TimeScale:
        """Return the scale for a ``dt``; raise where that is neither positive nor ``None``."""
        return cls(None if dt is None else check_positive(f"{caller}: dt", dt, unit="milliseconds"))

    def at(self, steps: Steps) -> Steps:
        """Return the place of steps on the axis."""
        return steps if self.dt is None else (steps + 0.5) * self.dt

    def show(self, ax: Axes, steps: int) -> None:
        """Set limits, ticks and label of the axis for a number of steps."""
        ax.set(xlim=(self.at(-0.5), self.at(steps - 0.5)))
        ax.set(xlabel="time step" if self.dt is None else "time (ms)")
        if self.dt is None:
            set_integer_ticks(ax, "x")
        else:
            from matplotlib.ticker import MaxNLocator

            ax.xaxis.set_major_locator(MaxNLocator(nbins=6))


def add_legend(ax: Axes) -> None:
    """Add a legend beside the axes, where it hides nothing."""
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize="small",
    )


def set_title(ax: Axes, title: str | None) -> None:
    """Set the title of the axes, if there is one."""
    if title:
        ax.set_title(title, fontsize="medium")
