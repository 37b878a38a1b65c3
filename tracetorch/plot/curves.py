"""Draw lines: a list of values, and learning curves of one training or of several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from tracetorch.plot.axes import COLOURS, finished, get_axes, set_integer_ticks
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import Array, flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve: TypeAlias = Sequence[float | Tensor] | Tensor | Array


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
    return finished(ax, title, legend=bool(ax.get_legend_handles_labels()[0]))


@describe_plot
def learning_curves(
    curves: Mapping[str, Curve | Sequence[Curve]],
    *,
    best: Literal["highest", "lowest"] | None = None,
    xlabel: str = "epoch",
    ylabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw measures over the epochs of a training, with the spread of several seeds as a band.

    Args:
        curves: values by name, such as ``{"training": losses, "validation": others}``: a list,
            an array or a tensor of numbers, one for each epoch; or a list of them, or a table
            ``[seeds, epochs]``, of which the mean over the seeds is drawn, and a band from the
            lowest to the highest. Seeds may end at different epochs; the mean is over
            those that are left.
        best: mark the epoch at which each curve, a mean of seeds, is highest or lowest; ``None``:
            mark nothing.
        xlabel: label of the x axis; epochs are counted from 1.
        ylabel: label of the y axis.

    Example:
        >>> ax = learning_curves({"training": [2.0, 1.0, 0.5], "test": [[2.0, 1.0], [4.0, 3.0]]})
        >>> [line.get_ydata().tolist() for line in ax.lines]
        [[2.0, 1.0, 0.5], [3.0, 2.0]]
    """
    if best not in (None, "highest", "lowest"):
        raise ValueError(
            f"learning_curves: best must be 'highest', 'lowest' or None, got {best!r}."
        )
    runs = {str(name): _runs(str(name), curve) for name, curve in curves.items()}

    ax = get_axes(ax)
    for number, (name, seeds) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        # of each epoch the seeds that have reached it; what is NaN there is a gap
        columns = [
            np.array([seed[epoch] for seed in seeds if epoch < len(seed)])
            for epoch in range(max(map(len, seeds)))
        ]
        epochs, mean = np.arange(1, len(columns) + 1), np.array([c.mean() for c in columns])
        if len(seeds) > 1:
            low, high = ([end(c) for c in columns] for end in (np.min, np.max))
            ax.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            name = f"{name}\nmean of {len(seeds)}"
        ax.plot(epochs, mean, color=colour, linewidth=1.4, label=name)
        if best is not None and not np.isnan(mean).all():
            at = int(np.nanargmax(mean) if best == "highest" else np.nanargmin(mean))
            ax.plot(epochs[at], mean[at], "o", color=colour, markersize=4, label="_")
    ax.set(xlabel=xlabel, ylabel=ylabel or "")
    set_integer_ticks(ax, "x")
    return finished(ax, title, legend=True)


def _runs(name: str, curve: Curve | Sequence[Curve]) -> list[Array]:
    """Return the values of each seed, ``[epochs]``, which may end at different ones."""
    caller = f"learning_curves: {name!r}"
    table = isinstance(curve, (Tensor, np.ndarray)) and curve.ndim == 2
    nested = isinstance(curve, (list, tuple)) and any(
        isinstance(each, Sequence) or np.ndim(each) for each in curve
    )
    several: Any = curve if table or nested else [curve]
    rows = [flat_numbers(caller, row) for row in several]
    if not rows or not all(len(row) for row in rows):
        raise ValueError(f"{caller} has no values.")
    return rows
