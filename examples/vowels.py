"""Identify one of nine speakers from a spoken vowel, in sequences of 7 to 29 frames.

Sequences of different lengths are padded, and a mask marks the real steps: the logits are the mean
of the readout over them. 270 utterances are for training, 370 are held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import common, networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.vowels --help``."""
    options = common.Options("examples.vowels", __doc__ or "", epochs=60)
    networks.add_options(options)
    parsed = options.parse(arguments)
    networks.check_options(options, parsed)
    return common.run("vowels", networks.configuration(parsed), parsed, load, learn, draw)


def logits(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Map sequences ``[T, B, 12]`` to the mean output over their real steps, ``[B, 9]``."""
    if isinstance(model, networks.Spiking):
        model.zero_states()
        return tt.decode.rate(tt.unroll(model, x), mask=mask)
    y: Tensor = model(x, mask)
    return y


def load(options: argparse.Namespace) -> tuple[tt.data.Sequences, tt.data.Sequences]:
    """Load training and test data: held-out utterances, or a third of the training set."""
    learnt, held_out = tt.data.japanese_vowels()
    if not options.validation:
        return learnt, held_out
    number = torch.arange(len(learnt))
    parts = [number[number % 3 != 0], number[number % 3 == 0]]
    kept, measured = (
        tt.data.Sequences([learnt.sequences[i] for i in part], learnt.labels[part])
        for part in parts
    )
    return kept, measured


def learn(
    options: argparse.Namespace, data: tuple[tt.data.Sequences, tt.data.Sequences], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    model = networks.build(options, 12, 9, width=64)
    networks.learn(options, model, logits, data[0], 30, seed)
    return model, networks.scores(model, logits, data, 370)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[tt.data.Sequences, tt.data.Sequences], model: nn.Module
) -> Figure:
    """Plot a held-out utterance, and the class probabilities after each frame."""
    from matplotlib.figure import Figure

    utterance, speaker = data[1][0]
    x, mask = tt.data.pad([utterance])
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(utterance.T.numpy(), aspect="auto", cmap="coolwarm")
    left.set(title=f"an utterance of speaker {int(speaker) + 1}", xlabel="frame")
    left.set(ylabel="cepstral coefficient")
    # unrolled once per prefix: the network returns a mean over all steps
    outputs = torch.stack([logits(model, x[: t + 1], mask[: t + 1])[0] for t in range(len(x))])
    for number, line in enumerate(outputs.softmax(1).T, 1):
        right.plot(line.numpy(), label=str(number))
    right.set(title="speaker by the frames so far", xlabel="frame", ylabel="probability")
    right.legend(ncols=2, fontsize="small")
    return figure


if __name__ == "__main__":
    sys.exit(main())
