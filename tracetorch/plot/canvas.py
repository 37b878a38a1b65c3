"""Where a plot is drawn, and how all of them look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetorch.core.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6690", "#d1495b", "#6a8d3f", "#7b5ea7", "#d98e32", "#3a9d9d", "#8c6d5a", "#c06c9b")
INK, MUTED, FAINT = "#33373d", "#8a9099", "#d5d9df"
HEAT = "viridis"


def canvas(ax: Axes | None, size: tuple[float, float] = (6.4, 3.2)) -> Axes:
    """``ax``, or axes on a figure of their own that no window and no pyplot knows of.

    Args:
        ax: axes to draw on, or ``None``.
        size: of the figure made where there is none, in inches.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        TypeError: ``ax`` is no matplotlib axes.
    """
    require("matplotlib", extra="plot", by="tt.plot")
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=size, layout="constrained").add_subplot()
    elif not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be matplotlib axes, got {type(ax).__name__}. Of several axes give one: "
            "axes[0]; leave ax out for a figure of its own."
        )
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def whole_numbers(ax: Axes, *names: str) -> None:
    """Ticks of the axes ``"x"``, ``"y"`` at whole numbers only, few of them."""
    from matplotlib.ticker import MaxNLocator

    for name in names:
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def legend(ax: Axes) -> None:
    """The labels beside the axes, where they hide nothing."""
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize="small",
    )


def titled(ax: Axes, title: str | None) -> None:
    """Set the title, where there is one."""
    if title:
        ax.set_title(title, fontsize="medium")
