"""Draw lines: values over steps, learning curves, smoothed measurements, surrogate derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.functional import decay_to_halflife
from tracetorch.functional.surrogates import SURROGATES
from tracetorch.plot.axes import (
    COLOURS,
    FAINT,
    describe_plot,
    finished,
    get_axes,
    set_integer_ticks,
)
from tracetorch.plot.recorded import Array, flat_numbers, to_numpy
from tracetorch.snn.parameters import SpikeFunction

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
    values = flat_numbers(list_of_values)
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
    table = isinstance(curve, (Tensor, np.ndarray)) and curve.ndim == 2
    nested = isinstance(curve, (list, tuple)) and any(
        isinstance(each, Sequence) or np.ndim(each) for each in curve
    )
    several: Any = curve if table or nested else [curve]
    rows = [flat_numbers(row) for row in several]
    if not rows or not all(len(row) for row in rows):
        raise ValueError(f"learning_curves: {name!r} has no values.")
    return rows


class MeasurementManager:
    """Exponential moving averages of a measurement, such as a loss, at several decays.

    After the values ``v_1 .. v_n`` the average at a decay ``d`` is bias-corrected::

        average = sum_i d^(n - i) v_i / sum_i d^(n - i)

    so that with d = 0 it is the last value, and after the first value it is this value at every d.

    Args:
        title: name of the measurement.
        decay: the decays, at least 0 and less than 1 each.

    Raises:
        TypeError: a decay is not a number.
        ValueError: there is no decay, or one is out of range.

    Example:
        >>> losses = MeasurementManager("loss", decay=[0.0, 0.5])
        >>> for value in (4.0, 1.0):
        ...     losses.append(value)
        >>> losses.measurement[-1].tolist()
        [1.0, 2.0]
        >>> losses.plot().get_ylabel()
        'loss'
    """

    title: str
    decay: Tensor  # [D]
    trace: Tensor  # [D], sum_i (1 - d) d^(n - i) v_i
    measurement: list[Tensor]  # [D] after each value

    def __init__(self, title: str, decay: Sequence[float] = (0.0, 0.9, 0.99, 0.999)) -> None:
        decays = [float(value) for value in decay]
        if not decays or not all(0 <= value < 1 for value in decays):
            raise ValueError(
                f"MeasurementManager: decay takes numbers of at least 0 and less than 1, got "
                f"{list(decay)}."
            )
        self.title = title
        self.decay = torch.tensor(decays, dtype=torch.float64)
        self.trace = torch.zeros_like(self.decay)
        self.measurement = []

    def append(self, value: float | Tensor) -> None:
        """Append a value: a number, or a tensor of one element."""
        (new_value,) = flat_numbers([value])
        self.trace = self.decay * self.trace + (1 - self.decay) * float(new_value)
        # divided by the sum of the weights, as in Adam: the trace starts at 0
        count = len(self.measurement) + 1
        self.measurement.append(self.trace / (1 - self.decay**count))

    def plot(self, title: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw a line for each decay, the slowest in front.

        Args:
            title: title of the axes.
            ax: axes to draw on; if left out, new axes on a new figure.
        """
        lines = torch.stack(self.measurement).T
        ax = get_axes(ax)
        order = self.decay.argsort().tolist()
        for rank, which in enumerate(order):
            decay = float(self.decay[which])
            steps = decay_to_halflife(decay) if decay > 0 else 0.0
            halflife = f"\nhalf-life {steps:.3g}" if 1 <= steps < math.inf else ""
            last, colour = rank == len(order) - 1, COLOURS[rank % len(COLOURS)]
            alpha = 1.0 if last else 0.35 + 0.4 * rank / max(len(order) - 1, 1)
            style: Any = {"color": colour, "linewidth": 1.8 if last else 1.0, "alpha": alpha}
            label, counts = f"decay {decay:g}{halflife}", range(1, lines.shape[1] + 1)
            ax.plot(counts, lines[which].numpy(), label=label, **style)
        ax.set(xlabel="measurement", ylabel=self.title)
        set_integer_ticks(ax, "x")
        return finished(ax, title, legend=True)


Surrogates: TypeAlias = SpikeFunction | Sequence[SpikeFunction] | Mapping[str, SpikeFunction]
NUM_POINTS = 801  # odd, so that one of them is the threshold


@describe_plot
def surrogate_curves(
    surrogates: Surrogates | None = None,
    *,
    reach: float = 1.5,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw surrogate derivatives over the distance to the threshold, computed by autograd.

    Args:
        surrogates: a callable ``u -> spikes``, several, or a dict of them by label; if left out,
            those of ``tt.functional`` with their defaults.
        reach: largest distance to the threshold, on both sides.

    Shape:
        x in units of the membrane; y in spikes per unit of the membrane.

    Example:
        >>> from tracetorch.functional import atan_surrogate
        >>> line = surrogate_curves(atan_surrogate(2.0)).lines[0]
        >>> line.get_label(), round(float(line.get_ydata().max()), 3)
        ('atan_surrogate(alpha=2.0)', 1.0)
    """
    given = SURROGATES if surrogates is None else surrogates
    if isinstance(given, Mapping):
        labelled = list(given.items())
    else:
        several = given if isinstance(given, Sequence) else [given]
        # the name of a function, or the repr of any other callable
        labelled = [(str(getattr(spike, "__name__", repr(spike))), spike) for spike in several]
    reach = check_positive("surrogate_curves: reach", reach)
    u = torch.linspace(-reach, reach, NUM_POINTS, dtype=torch.float64)
    curves: list[tuple[str, Array]] = []
    for label, spike in labelled:
        # enabled also within torch.no_grad
        with torch.enable_grad():
            membrane = u.clone().requires_grad_()
            spikes = spike(membrane)
            (slope,) = torch.autograd.grad(spikes.sum(), membrane)
        curves.append((label, to_numpy(slope)))

    ax = get_axes(ax)
    for number, (label, curve) in enumerate(curves):
        ax.plot(u.numpy(), curve, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=label)
    ax.axvline(0.0, color=FAINT, linewidth=1.0, zorder=0)
    ax.set(xlabel="membrane - threshold", ylabel="derivative of the spike", ylim=(0.0, None))
    ax.set_xlim(-reach, reach)
    return finished(ax, title, legend=True)
