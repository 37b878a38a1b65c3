"""Draw kernel density estimates of the values in tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.core.checks import check_count, check_positive
from tracetorch.plot.axes import COLOURS, finished, get_axes
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import Array, flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUARTILES = (25, 50, 75)


@describe_plot
def distributions(
    layers: Sequence[Tensor] | Mapping[str, Tensor],
    title: str,
    *,
    n_grid: int = 1024,
    bandwidths: Sequence[float | None] | None = None,
    show_percentile_lines: bool = False,
    max_kde_samples: int = 20_000,
    ax: Axes | None = None,
) -> Axes:
    """Draw the density of the values in each tensor, estimated with Gaussian kernels.

    A tensor of equal values is a vertical line. Of more than ``max_kde_samples`` values only that
    many quantiles are used.

    Args:
        layers: tensors of any shape, or a dict of them by label.
        n_grid: number of points of a curve.
        bandwidths: standard deviation of the kernels of each tensor; ``None`` for Silverman's
            rule.
        show_percentile_lines: draw a vertical line at each quartile.
        max_kde_samples: maximum number of values of a tensor that are used.

    Example:
        >>> ax = distributions({"beta": torch.rand(500), "threshold": torch.ones(8)}, "LIF")
        >>> [line.get_label() for line in ax.lines]
        ['beta', 'threshold']

    Reference: Silverman, "Density Estimation for Statistics and Data Analysis", 1986.
    """
    if not isinstance(layers, Mapping):
        layers = {f"layer {number}": tensor for number, tensor in enumerate(layers)}
    n_grid = check_count("distributions: n_grid", n_grid)
    max_samples = check_count("distributions: max_kde_samples", max_kde_samples)
    given = [None] * len(layers) if bandwidths is None else bandwidths
    values, widths = {}, {}
    for (label, tensor), width in zip(layers.items(), given, strict=True):
        values[label] = value = _selected(label, tensor, max_samples)
        if value[0] == value[-1]:  # equal values have no bandwidth
            continue
        if width is None:
            width = float(value.std(ddof=1)) * (4 / (3 * len(value))) ** 0.2
        widths[label] = check_positive("distributions: a bandwidth", width)

    ax = get_axes(ax)
    from matplotlib.mlab import GaussianKDE

    grid = _grid(values, widths, n_grid)
    for number, (label, value) in enumerate(values.items()):
        colour = COLOURS[number % len(COLOURS)]
        if label not in widths:
            ax.axvline(value[0], color=colour, linewidth=2.0, label=label)
            continue
        # which takes the bandwidth relative to the standard deviation
        density = GaussianKDE(value, widths[label] / float(value.std(ddof=1))).evaluate(grid)
        ax.plot(grid, density, color=colour, linewidth=1.4, label=label)
        ax.fill_between(grid, density, color=colour, alpha=0.12, linewidth=0)
        for quartile in np.percentile(value, QUARTILES) if show_percentile_lines else ():
            ax.axvline(quartile, color=colour, linewidth=0.8, linestyle=(0, (2, 2)), label="_")
    ax.set(xlabel="value", ylabel="density", xlim=(grid[0], grid[-1]), ylim=(0.0, None))
    return finished(ax, title, legend=True)


def _selected(label: str, tensor: object, most: int) -> Array:
    """Return sorted values of a tensor, ``most`` at most."""
    flat = np.sort(flat_numbers(f"distributions: {label}", tensor))
    if not len(flat) or not np.isfinite(flat).all():
        raise ValueError(f"distributions: {label} must hold finite values, got {tensor!r}.")
    # evenly spaced in sorted order, so that a part of many values has the same density
    selected = np.linspace(0, len(flat) - 1, min(most, len(flat))).round().astype(int)
    values: Array = flat[selected].astype(np.float64)
    return values


def _grid(values: Mapping[str, Array], bandwidths: Mapping[str, float], count: int) -> Array:
    """Return the points at which densities are drawn."""
    # beyond three bandwidths a Gaussian kernel is invisible
    low = min(value[0] - 3 * bandwidths.get(label, 0.0) for label, value in values.items())
    high = max(value[-1] + 3 * bandwidths.get(label, 0.0) for label, value in values.items())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, count)
