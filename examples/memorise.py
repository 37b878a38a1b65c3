"""Memorise spike patterns: frozen noise is the input, the raster of a digit the target.

Each pattern of random spikes is paired with a handwritten digit, which 28 output neurons draw
within 28 time steps. There is no generalisation: every spike is learnt at its exact step. The
score is the F1 of the spikes, 1 where all of them and no others are there.
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
from examples.common import count
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.memorise --help``."""
    options = common.Options(
        "examples.memorise", __doc__ or "", epochs=2000, lr=5e-3, unit="optimizer steps"
    )
    options.add_argument(
        "--patterns", type=count, default=50, metavar="N", help="how many (%(default)s)"
    )
    parsed = options.parse(arguments)
    name = f"LIF, {parsed.patterns} patterns"
    return common.run("memorise", name, parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Draw noise ``[T=28, B, 100]`` and load its target digits ``[T=28, B, 28]``."""
    images, _ = tt.data.load_digits().train[: options.patterns]
    generator = torch.Generator().manual_seed(0)
    noise = tt.encode.rate(torch.full((len(images), INPUTS), 0.1), 28, generator=generator)
    # time runs from left to right, neurons from the top to the bottom
    return noise, (images[:, 0] > 0.5).float().permute(2, 0, 1)


def network() -> nn.Module:
    """Build two layers of spiking neurons, with half-lives from one step to 28."""
    halflives = torch.logspace(0, 4.8, 256, base=2)
    return nn.Sequential(
        nn.Linear(INPUTS, 256),
        snn.LIF(256, beta=tt.functional.halflife_to_decay(halflives)),
        nn.Linear(256, 28),
        snn.LIF(28, beta=0.5),
    )


def output_spikes(model: nn.Module, noise: Tensor) -> Tensor:
    """Return the spikes of the output neurons ``[T, B, 28]``, from rest."""
    tt.zero_states(model)
    y: Tensor = tt.unroll(model, noise)
    return y


def learn(
    options: argparse.Namespace, data: tuple[Tensor, Tensor], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its score."""
    from tqdm import tqdm

    noise, target = data
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs
    )
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        # tau of one step: a spike that is a step or two late counts as wrong
        loss = tt.loss.van_rossum(output_spikes(model, noise), target, tau=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model, {"F1": f1(output_spikes(model, noise), target)}


def f1(spikes: Tensor, target: Tensor) -> float:
    """Compute the harmonic mean of precision and recall of spikes at their exact steps."""
    right = float((spikes * target).sum())
    return 2 * right / float(spikes.sum() + target.sum())


@torch.no_grad()
def draw(options: argparse.Namespace, data: tuple[Tensor, Tensor], model: nn.Module) -> Figure:
    """Plot patterns of noise, their target rasters and the output rasters."""
    from matplotlib.figure import Figure

    noise, target = data
    spikes = output_spikes(model, noise)
    shown = min(3, options.patterns)
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3 * shown), layout="constrained")
    titles = ("frozen noise", "target", "output")
    for row, axes in enumerate(figure.subplots(shown, 3, squeeze=False)):
        for ax, raster, title in zip(axes, (noise, target, spikes), titles, strict=True):
            ax.imshow(raster[:, row].T.numpy(), cmap="gray_r", aspect="auto")
            ax.set(title=title, xlabel="time step", ylabel="neuron")
    return figure


if __name__ == "__main__":
    sys.exit(main())
