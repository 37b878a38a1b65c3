"""Track a measurement over training, smoothed at several decays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracetorch.functional import decay_to_halflife
from tracetorch.plot.axes import COLOURS, finished, get_axes, set_integer_ticks
from tracetorch.plot.recorded import flat_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        """Append a value: a number, or a tensor of one element.

        Raises:
            TypeError: ``value`` is neither.
        """
        (new_value,) = flat_numbers("MeasurementManager.append", [value])
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
