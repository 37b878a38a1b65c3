"""Recognise made-up words in spikes of a simulated cochlea: five, and each of them backwards.

A word is three ridges that move through 40 channels; speakers differ in pitch, tempo and onset, and
spikes are drawn at random. Backwards a word has the same channels, so rates alone cannot tell. All
is drawn from fixed seeds: 1,000 words are for training, 400 for choosing, 1,000 are held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import TensorDataset

import tracetorch as tt
from examples import common, networks, vowels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS, STEPS, CLASSES = 40, 50, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.words --help``."""
    options = common.Options("examples.words", __doc__ or "", epochs=20)
    networks.add_options(options)
    parsed = options.parse(arguments)
    networks.check_options(options, parsed)
    return common.run("words", networks.configuration(parsed), parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """Load training and test data, or data to choose settings by."""
    learnt = tt.data.made_up_words(200 if options.quick else 1000, 1)
    return learnt, tt.data.made_up_words(400, 2) if options.validation else tt.data.made_up_words(
        1000, 3
    )


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    model = networks.build(options, CHANNELS, CLASSES, width=64)
    networks.learn(options, model, vowels.logits, data[0], 50, seed)
    return model, networks.scores(model, vowels.logits, data, 250)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], model: nn.Module
) -> Figure:
    """Plot a word, the same word backwards, and the class probabilities over time."""
    from matplotlib.figure import Figure

    words, labels = data[1].tensors
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, label in zip(axes, (0, 1), strict=False):
        ax.imshow(words[labels == label][0].T.numpy(), cmap="gray_r", origin="lower", aspect="auto")
        ax.set(title=("a word", "the same, backwards")[label], xlabel="step", ylabel="channel")
    x, mask = tt.data.pad([words[labels == 0][0]])
    # unrolled once per prefix: the network returns a mean over all steps
    outputs = torch.stack(
        [vowels.logits(model, x[: t + 1], mask[: t + 1])[0] for t in range(STEPS)]
    )
    axes[2].plot(outputs.softmax(1).numpy(), color="0.8")
    axes[2].plot(outputs.softmax(1)[:, 0].numpy(), color="C3")
    axes[2].set(title="probability of the word", xlabel="step")
    return figure


if __name__ == "__main__":
    sys.exit(main())
