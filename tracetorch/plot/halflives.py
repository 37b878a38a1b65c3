"""Draw distributions of half-lives, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor, nn

from tracetorch.core.checks import check_count
from tracetorch.functional import decay_to_halflife
from tracetorch.plot.axes import COLOURS, FAINT, MUTED, add_legend, get_axes, set_title
from tracetorch.plot.layer_parameters import decays
from tracetorch.plot.recorded import Array, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Decays: TypeAlias = nn.Module | Mapping[str, Tensor]


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
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        One decay per neuron ``[N]``, or ``[]``; x in time steps, logarithmic.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there are no decays, they differ in their paths, or one is not in (0, 1).

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
    border = _borders(states, bins)
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
    if len(states) == 2:
        add_legend(ax)
    set_title(ax, title)
    return ax


def _borders(states: Sequence[Mapping[str, Array]], bins: int) -> Array:
    """Return the borders of bars of equal width on a logarithmic axis, one range for all rows."""
    everything = np.concatenate([steps for state in states for steps in state.values()])
    return np.geomspace(everything.min() / 1.15, everything.max() * 1.15, bins + 1)  # a margin


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
        else:
            _draw_bars(ax, border, floor, count / highest, colour, label, outlined=last)


def _draw_bars(
    ax: Axes, border: Array, floor: int, heights: Array, colour: str, label: str, *, outlined: bool
) -> None:
    """Draw a histogram that stands on a floor; the highest bar takes most of its row."""
    ax.stairs(
        floor + 0.85 * heights,
        border,
        baseline=floor,
        facecolor=(colour, 0.35),
        edgecolor=colour if outlined else "none",
        linewidth=1.2,
        fill=True,
        label=label,
    )


def _halflives(name: str, source: object) -> dict[str, Array]:
    """Return half-lives by path, ``[N]`` each, of a model or a dict of decays."""
    by_path = decays(source) if isinstance(source, nn.Module) else source
    if not isinstance(by_path, Mapping):
        raise TypeError(
            f"halflives: {name} must be a model or a dict from paths to decays, got "
            f"{type(source).__name__}."
        )
    if not by_path:
        raise ValueError(f"halflives: {name} has no decays. Pass a model with neuron layers.")
    steps: dict[str, Array] = {}
    for path, value in by_path.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"halflives: {name}[{path!r}] must be a tensor of decays, got "
                f"{type(value).__name__}."
            )
        try:
            steps[path] = to_numpy(decay_to_halflife(value.detach().double().reshape(-1)))
        except ValueError as error:
            raise ValueError(f"halflives: {name}[{path!r}]: {error}") from None
    return steps
