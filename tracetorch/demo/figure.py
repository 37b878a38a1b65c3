"""The picture: one digit, the spikes it causes, and the readout making up its mind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracetorch.demo.network import ConvSNN, spikes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 30  # neurons per raster
SHADE, RIGHT, WRONG, OTHER = "#f3f0e6", "#d1495b", "#33373d", "#b9bec6"


@torch.no_grad()
def draw(model: ConvSNN, image: Tensor, label: int, steps: int, path: Path) -> None:
    """Draw an input, the spikes of the spiking layers and the readout over time, as a PNG.

    Args:
        model: the network.
        image: one digit ``[1, 28, 28]``.
        label: its class.
        steps: time steps the network was trained with; four times as many are shown.
        path: where the PNG goes.

    """
    from matplotlib.figure import Figure

    shown = 4 * steps
    model.eval()
    spikes, readout = spikes_of(model, image.unsqueeze(0), shown)
    model.zero_states()
    logits = readout[:, 0]  # [T, 10]
    guess = int(logits[:steps].mean(0).argmax())

    # a Figure of its own, not pyplot's: it draws with Agg and opens no window
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(spikes), 3, width_ratios=(1, 1.5, 1.5))

    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(image[0].numpy(), cmap="gray_r")
    axes.set(title=f"input: a held-out {label}", xlabel="the same current at every step")
    axes.set(xticks=[], yticks=[])

    for row, (name, sent) in enumerate(spikes.items()):
        neurons = sent[:, 0].flatten(1)  # [T, N]
        step, line = raster(neurons).nonzero(as_tuple=True)
        axes = figure.add_subplot(grid[row, 1])
        axes.scatter(
            step.numpy() + 1, line.numpy(), s=10, marker="|", color=f"C{4 * row}", linewidths=1.5
        )
        axes.set(title=f"{name}: {neurons.mean():.3f} spikes per neuron and step", yticks=[])
        axes.set(ylabel=f"{ROWS} of {neurons.shape[1]:,}\nneurons", ylim=(ROWS, -1))
        _time_axis(axes, steps, shown)
    axes.set_xlabel("time step")

    axes = figure.add_subplot(grid[:, 2])
    axes.set(
        title=f"readout: the network says {guess}",
        xlabel=f"time step (shaded: T={steps}, as trained)",
    )
    gap = 0.04 * float(logits.max() - logits.min())
    height = -math.inf
    for digit in logits[-1].argsort().tolist():
        colour = RIGHT if digit == label else WRONG if digit == guess else OTHER
        width = 2.5 if digit in (label, guess) else 1.3
        axes.plot(range(1, shown + 1), logits[:, digit].numpy(), color=colour, linewidth=width)
        # labels keep their distance where lines end close together
        height = max(float(logits[-1, digit]), height + gap)
        axes.text(shown + 0.4, height, str(digit), color=colour, va="center")
    _time_axis(axes, steps, shown + 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def raster(spikes: Tensor) -> Tensor:
    """Some neurons, from the one that fires most to the one that fires least, of those that fire.

    Shape:
        Input ``[T, N]``; output ``[T, ROWS]``, or fewer rows where fewer fire.

    """
    count = spikes.sum(0)
    active = count.argsort(descending=True, stable=True)[: int((count > 0).sum())]
    picked = torch.linspace(0, max(len(active) - 1, 0), min(ROWS, len(active))).long()
    return spikes[:, active[picked]]


def _time_axis(axes: Axes, steps: int, end: int) -> None:
    axes.axvspan(0.5, steps + 0.5, color=SHADE, zorder=0)
    axes.set(xlim=(0.5, end + 0.5), xticks=[1, *range(steps, end + 1, steps)])
