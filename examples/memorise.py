"""Memorise patterns: frozen noise in, the spike raster of a digit out.

Each of ten patterns of random spikes must be answered with one handwritten digit, drawn by 28
output neurons within 28 time steps. Nothing generalises here: every spike is learnt by heart, at
its exact step. The score is the F1 of the spikes: 1 where each one is where it should be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import common
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m examples.memorise --help``."""
    options = common.Options(
        "examples.memorise", __doc__ or "", epochs=2000, lr=5e-3, unit="optimizer steps"
    )
    options.add_argument(
        "--patterns", type=common.count, default=50, metavar="N", help="how many (%(default)s)"
    )
    parsed = options.parse(arguments)
    name = f"LIF, {parsed.patterns} patterns"
    return common.run("memorise", name, parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Noise ``[T=28, B, 100]`` and the digits that answer it, ``[T=28, B, 28]``."""
    images, _ = tt.data.load_digits().train[: options.patterns]
    generator = torch.Generator().manual_seed(0)
    noise = tt.encode.rate(torch.full((len(images), INPUTS), 0.1), 28, generator=generator)
    # time runs from left to right, neurons from the top to the bottom
    return noise, (images[:, 0] > 0.5).float().permute(2, 0, 1)


def network() -> nn.Module:
    """Two layers of spiking neurons that forget at every pace from one step to 28."""
    halflives = torch.logspace(0, 4.8, 256, base=2)
    return nn.Sequential(
        nn.Linear(INPUTS, 256),
        snn.LIF(256, beta=tt.functional.halflife_to_decay(halflives)),
        nn.Linear(256, 28),
        snn.LIF(28, beta=0.5),
    )


def answer(model: nn.Module, noise: Tensor) -> Tensor:
    """The spikes of the output neurons, from rest: ``[T, B, 28]``."""
    tt.zero_states(model)
    y: Tensor = tt.unroll(model, noise)
    return y


def learn(
    options: argparse.Namespace, data: tuple[Tensor, Tensor], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network, and measure it."""
    from tqdm import tqdm

    noise, target = data
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs
    )
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        # a spike at the wrong step is forgiven less and less within a step or two
        loss = tt.loss.van_rossum(answer(model, noise), target, tau=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model, {"F1": f1(answer(model, noise), target)}


def f1(spikes: Tensor, target: Tensor) -> float:
    """The harmonic mean of precision and recall of the spikes, each at its exact step."""
    right = float((spikes * target).sum())
    return 2 * right / float(spikes.sum() + target.sum())


@torch.no_grad()
def draw(options: argparse.Namespace, data: tuple[Tensor, Tensor], model: nn.Module) -> Figure:
    """A pattern of noise, the raster that shall answer it, and the one that does."""
    from matplotlib.figure import Figure

    noise, target = data
    sent = answer(model, noise)
    shown = min(3, options.patterns)
    # a figure of its own, not pyplot's: it opens no window
    figure = Figure(figsize=(9, 3 * shown), layout="constrained")
    titles = ("frozen noise", "to be answered with", "answered with")
    for row, axes in enumerate(figure.subplots(shown, 3, squeeze=False)):
        for ax, raster, title in zip(axes, (noise, target, sent), titles, strict=True):
            ax.imshow(raster[:, row].T.numpy(), cmap="gray_r", aspect="auto")
            ax.set(title=title, xlabel="time step", ylabel="neuron")
    return figure


if __name__ == "__main__":
    sys.exit(main())
