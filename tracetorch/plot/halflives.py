"""How long neurons remember, before training and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor, nn

from tracetorch.core.checks import check_count
from tracetorch.functional import decay_to_halflife
from tracetorch.plot.canvas import COLOURS, FAINT, MUTED, canvas, legend, titled
from tracetorch.plot.constrained import decays
from tracetorch.plot.recorded import Array, array

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
    """Distributions of decays as half-lives, ``log(0.5) / log(decay)`` steps, a row for each.

    In grey what was before, in colour what is after. A row is as high as its fullest bar. A decay
    that a layer has only one of is a dot.

    Args:
        before: a model, or its decays by path as :func:`tracetorch.plot.decays` takes them:
            training changes a model in place, so take them first.
        after: likewise; left out, one state is drawn.
        bins: number of bars over the whole axis.
        title: above the axes.
        ax: axes to draw on; left out, they are made, with a figure of their own.

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
    first = _steps("before", before)
    second = None if after is None else _steps("after", after)
    bins = check_count("halflives: bins", bins)
    if second is not None and list(first) != list(second):
        raise ValueError(
            f"halflives: before has {list(first)}, after has {list(second)}. Give the same model."
        )

    states = [first] if second is None else [first, second]
    every = np.concatenate([steps for state in states for steps in state.values()])
    low, high = every.min() / 1.15, every.max() * 1.15
    border = np.geomspace(low, high, bins + 1)
    ax = canvas(ax, (6.4, 1.4 + 0.6 * len(first)))
    ax.set_xscale("log")
    for row, path in enumerate(first):
        floor = len(first) - 1 - row
        ax.axhline(floor, color=FAINT, linewidth=0.8, zorder=0)
        counts = [np.histogram(state[path], border)[0] for state in states]
        highest = max(int(count.max()) for count in counts)
        for number, (state, count) in enumerate(zip(states, counts, strict=True)):
            last = number == len(states) - 1
            colour = COLOURS[0] if last else MUTED
            label = "_" if row or len(states) == 1 else ("before", "after")[number]
            if len(state[path]) == 1:
                ax.plot(state[path], [floor + 0.12], "o", color=colour, markersize=6, label=label)
            else:
                bars = floor + 0.85 * count / highest
                ax.stairs(
                    bars,
                    border,
                    baseline=floor,
                    facecolor=(colour, 0.35),
                    edgecolor=colour if last else "none",
                    linewidth=1.2,
                    fill=True,
                    label=label,
                )
    ax.set(xlabel="half-life (time steps)", xlim=(low, high), ylim=(-0.05, len(first)))
    ax.set_yticks(np.arange(len(first))[::-1], list(first))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.tick_params(axis="y", length=0)
    if len(states) == 2:
        legend(ax)
    titled(ax, title)
    return ax


def _steps(name: str, given: object) -> dict[str, Array]:
    """Half-lives by path, ``[N]`` each."""
    told = decays(given) if isinstance(given, nn.Module) else given
    if not isinstance(told, Mapping):
        raise TypeError(
            f"halflives: {name} must be a model or a dict from paths to decays, got "
            f"{type(given).__name__}."
        )
    if not told:
        raise ValueError(f"halflives: {name} has no decays. Give a model with neuron layers.")
    steps: dict[str, Array] = {}
    for path, value in told.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"halflives: {name}[{path!r}] must be a tensor of decays, got "
                f"{type(value).__name__}."
            )
        try:
            steps[path] = array(decay_to_halflife(value.detach().double().reshape(-1)))
        except ValueError as error:
            raise ValueError(f"halflives: {name}[{path!r}]: {error}") from None
    return steps
