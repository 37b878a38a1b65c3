"""Create matplotlib axes, and the style that all plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetorch.core.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6690", "#d1495b", "#6a8d3f", "#7b5ea7", "#d98e32", "#3a9d9d", "#8c6d5a", "#c06c9b")
INK, MUTED, FAINT = "#33373d", "#8a9099", "#d5d9df"
COLOURMAP = "viridis"


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
