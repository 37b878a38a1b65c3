"""Draw distributions of parameters: densities of tensors, half-lives before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_module, check_positive
from tracetorch.core.walk import join_path, named_modules
from tracetorch.functional import decay_to_halflife
from tracetorch.plot.axes import COLOURS, FAINT, MUTED, describe_plot, finished, get_axes
from tracetorch.plot.recorded import Array, flat_numbers, to_numpy
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.sequence_layer import SequenceLayer

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
    flat = np.sort(flat_numbers(tensor))
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


Decays: TypeAlias = nn.Module | Mapping[str, Tensor]


@describe_plot
def halflives(
    before: Decays,
    after: Decays | None = None,
    *,
    bins: int = 30,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw distributions of decays as half-lives, ``log(0.5) / log(decay)`` steps, a row for each.

    Values before training are grey, values after it coloured. The bars of each row are scaled to
    its highest. A decay with a single value is a dot.

    Args:
        before: a model, or its decays by path as :func:`tracetorch.plot.decays` copies them;
            copy them before training, which changes a model in place.
        after: the model or its decays after training; if left out, only ``before`` is drawn.
        bins: number of bars over the whole axis.

    Shape:
        One decay per neuron ``[N]``, or ``[]``; x in time steps, logarithmic.

    Example:
        >>> net = nn.Sequential(LIF(8, beta=torch.linspace(0.5, 0.9, 8)), Readout(2))
        >>> before = decays(net)
        >>> with torch.no_grad():
        ...     _ = net[0].raw_beta.add_(1.0)
        >>> ax = halflives(before, net)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0.beta', '1.beta']
    """
    states = [_halflives("before", before)]
    if after is not None:
        states.append(_halflives("after", after))
    bins = check_count("halflives: bins", bins)
    first, last = states[0], states[-1]
    if list(first) != list(last):
        raise ValueError(
            f"halflives: before has {list(first)}, after has {list(last)}. Pass the same model."
        )
    # bars of equal width on a logarithmic axis, one range for all rows, with a margin
    everything = np.concatenate([steps for state in states for steps in state.values()])
    border = np.geomspace(everything.min() / 1.15, everything.max() * 1.15, bins + 1)
    ax = get_axes(ax, (6.4, 1.4 + 0.6 * len(first)))
    ax.set_xscale("log")
    for row, path in enumerate(first):
        # labelled once, in the first row
        labels = ("_", "_") if row or len(states) == 1 else ("before", "after")
        _draw_row(ax, [state[path] for state in states], len(first) - 1 - row, border, labels)
    ax.set(xlabel="half-life (time steps)", xlim=(border[0], border[-1]), ylim=(-0.05, len(first)))
    ax.set_yticks(np.arange(len(first))[::-1], list(first))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.tick_params(axis="y", length=0)
    return finished(ax, title, legend=len(states) == 2)


def _draw_row(
    ax: Axes, states: Sequence[Array], floor: int, border: Array, labels: Sequence[str]
) -> None:
    """Draw the half-lives of a layer, those after training in colour and with an outline."""
    ax.axhline(floor, color=FAINT, linewidth=0.8, zorder=0)
    counts = [np.histogram(state, border)[0] for state in states]
    highest = max(int(count.max()) for count in counts)
    for number, (state, count) in enumerate(zip(states, counts, strict=True)):
        last, label = number == len(states) - 1, labels[number]
        colour = COLOURS[0] if last else MUTED
        # a histogram of a single value says less than its position
        if len(state) == 1:
            ax.plot(state, [floor + 0.12], "o", color=colour, markersize=6, label=label)
            continue
        # the highest bar takes most of its row
        edge = colour if last else "none"
        style: dict[str, Any] = {"facecolor": (colour, 0.35), "edgecolor": edge, "linewidth": 1.2}
        heights = floor + 0.85 * count / highest
        ax.stairs(heights, border, baseline=floor, fill=True, label=label, **style)


def _halflives(name: str, source: Decays) -> dict[str, Array]:
    """Return half-lives by path, ``[N]`` each, of a model or a dict of decays."""
    by_path = decays(source) if isinstance(source, nn.Module) else source
    if not by_path:
        raise ValueError(f"halflives: {name} has no decays. Pass a model with neuron layers.")
    return {
        path: to_numpy(decay_to_halflife(value.detach().double().reshape(-1)))
        for path, value in by_path.items()
    }


def decays(model: nn.Module) -> dict[str, Tensor]:
    """Copy every decay of every neuron layer, by path.

    Copy them before and after training, and compare them with :func:`tracetorch.plot.halflives`.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), SLIF(3, alpha=0.5, beta=0.9))
        >>> decays(net)
        {'1.alpha': tensor([0.5000, 0.5000, 0.5000]), '1.beta': tensor([0.9000, 0.9000, 0.9000])}
    """
    check_module(model)
    return {
        # cloned: training changes parameters in place
        join_path(path, name): getattr(layer, name).detach().clone()
        for path, layer in named_modules(model)
        if isinstance(layer, SequenceLayer)
        for name, constraint in layer.constraints.items()
        if is_decay(constraint)
    }
