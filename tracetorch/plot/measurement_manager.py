"""A measure taken again and again, smoothed at several decays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracetorch.functional import decay_to_halflife
from tracetorch.plot.canvas import COLOURS, canvas, legend, titled, whole_numbers
from tracetorch.plot.recorded import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MeasurementManager:
    """Running averages of a measure, a loss or an accuracy say, at several decays.

    After the values ``v_1 .. v_n`` the average at a decay d is the mean of all of them, each
    weighing ``d`` times what the next one does::

        average = sum_i d^(n - i) v_i / sum_i d^(n - i)

    so d = 0 is the last value, and the first average is the first value at every d.

    Args:
        title: what is measured.
        decay: one or several numbers, at least 0 and less than 1.

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
        told = [float(value) for value in decay]
        if not told or not all(0 <= value < 1 for value in told):
            raise ValueError(
                f"MeasurementManager: decay takes numbers of at least 0 and less than 1, got "
                f"{list(decay)}."
            )
        self.title = title
        self.decay = torch.tensor(told, dtype=torch.float64)
        self.trace = torch.zeros_like(self.decay)
        self.measurement = []

    def append(self, value: float | Tensor) -> None:
        """Take one more value: a number, or a tensor of one element.

        Raises:
            TypeError: ``value`` is neither.
        """
        try:
            told = number(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"MeasurementManager.append takes one number, got {value!r}. Try .mean()."
            ) from None
        self.trace = self.decay * self.trace + (1 - self.decay) * told
        count = len(self.measurement) + 1
        self.measurement.append(self.trace / (1 - self.decay**count))

    def plot(self, title: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw a line for each decay, the slowest in front.

        Args:
            title: above the axes.
            ax: axes to draw on; left out, they are made, with a figure of their own.

        Raises:
            ValueError: nothing has been appended.
        """
        if not self.measurement:
            raise ValueError("MeasurementManager.plot: append a value first.")
        lines = torch.stack(self.measurement).T
        ax = canvas(ax)
        order = self.decay.argsort().tolist()
        for place, which in enumerate(order):
            decay = float(self.decay[which])
            last = place == len(order) - 1
            ax.plot(
                range(1, lines.shape[1] + 1),
                lines[which].numpy(),
                color=COLOURS[place % len(COLOURS)],
                linewidth=1.8 if last else 1.0,
                alpha=1.0 if last else 0.35 + 0.4 * place / max(len(order) - 1, 1),
                label=f"decay {decay:g}{_halflife(decay)}",
            )
        ax.set(xlabel="measurement", ylabel=self.title)
        whole_numbers(ax, "x")
        legend(ax)
        titled(ax, title)
        return ax


def _halflife(decay: float) -> str:
    steps = decay_to_halflife(decay) if decay > 0 else 0.0
    return f"\nhalf-life {steps:.3g}" if math.isfinite(steps) and steps >= 1 else ""
