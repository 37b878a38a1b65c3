"""Draw one digit, the spikes that it causes, and the readout over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracetorch import plot
from tracetorch.core.files import atomic_replace
from tracetorch.demo.network import ConvSNN, record_spikes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RASTER_ROWS = 30
TRAINED_SHADE, LABEL_COLOUR, GUESS_COLOUR, OTHER_COLOUR = "#f3f0e6", "#d1495b", "#33373d", "#b9bec6"


@torch.no_grad()
def draw(model: ConvSNN, image: Tensor, label: int, steps: int, path: Path) -> None:
    """Draw an input, the spikes of the spiking layers and the readout over time, as a PNG.

    Of a network that was trained with so many ``steps`` four times as many are shown.
    """
    from matplotlib.figure import Figure

    shown = 4 * steps
    model.eval()
    spikes, readout = record_spikes(model, image[None], shown)
    logits = readout[:, 0]  # [T, 10]
    guess = int(logits[:steps].mean(0).argmax())

    # a Figure without pyplot draws with Agg and opens no window
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(spikes), 3, width_ratios=(1, 1.5, 1.5))

    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(image[0].numpy(), cmap="gray_r")
    axes.set(title=f"input: a held-out {label}", xlabel="the same current at every step")
    axes.set(xticks=[], yticks=[])

    for row, (name, layer_spikes) in enumerate(spikes.items()):
        axes = plot.raster(layer_spikes, limit=RASTER_ROWS, ax=figure.add_subplot(grid[row, 1]))
        axes.set(title=f"{name}: {layer_spikes[:, 0].mean():.3f} spikes per neuron and step")
        axes.set(yticks=[], xlabel="time step" if row == len(spikes) - 1 else "")
        _time_axis(axes, steps, shown)

    axes = figure.add_subplot(grid[:, 2])
    axes.set_title(f"readout: the network says {guess}")
    axes.set_xlabel(f"time step (shaded: T={steps}, as trained)")
    gap = 0.04 * float(logits.max() - logits.min())
    # from the lowest line up: each label is moved up where it would cover the one below
    height = -math.inf
    for digit in logits[-1].argsort().tolist():
        is_guess = digit == guess
        colour = LABEL_COLOUR if digit == label else GUESS_COLOUR if is_guess else OTHER_COLOUR
        width = 2.5 if digit in (label, guess) else 1.3
        axes.plot(logits[:, digit].numpy(), color=colour, linewidth=width)
        height = max(float(logits[-1, digit]), height + gap)
        axes.text(shown - 0.6, height, str(digit), color=colour, va="center")
    _time_axis(axes, steps, shown + 1)  # room for the labels
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_replace(path) as unfinished:
        figure.savefig(unfinished, metadata={"Software": None})


def _time_axis(axes: Axes, steps: int, end: int) -> None:
    """Mark multiples of the trained time steps, and shade the first of them."""
    axes.axvspan(-0.5, steps - 0.5, color=TRAINED_SHADE, zorder=0)
    axes.set(xticks=range(0, 4 * steps, steps), xlim=(-0.5, end - 0.5))
