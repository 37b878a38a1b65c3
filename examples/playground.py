"""Write the playgrounds of the documentation: neurons, and a small network that trains in the page.

    python examples/playground.py --out runs/playground

Both pages open from the file system. Writing the first takes some seconds, for every layer is
traced with every reset.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.plot.playground_story import FAMILY

SAMPLES = 120
FEW = 40  # samples, which a network learns by heart
CHOICES: dict[str, Callable[[int], snn.Neuron]] = {
    "LIF": snn.LIF,
    "LIF without reset": partial(snn.LIF, reset="none"),
    "SLIF, a synapse": snn.SLIF,
    "BLIF, both signs": snn.BLIF,
    "ALIF, adaptive": tt.neurons.ALIF,
    "no spikes": snn.Readout,
}
"""Neurons of the hidden layers, by the name of their network."""


def neurons() -> dict[str, snn.Neuron]:
    """Make the neurons of the page, by name."""
    family: dict[str, snn.Neuron] = {kind.__name__: kind(1) for kind in FAMILY}
    others = {name: getattr(tt.neurons, name)(1) for name in tt.neurons.__all__}
    # patterns of firing need parts of a millisecond
    return family | others | {"AdEx": tt.neurons.AdEx(1, substeps=4)}


def write(path: Path) -> None:
    """Write the page of the neurons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tt.plot.save_playground(neurons(), path)


def network(neuron: Callable[[int], snn.Neuron] = snn.LIF) -> nn.Sequential:
    """Make a network of the page: two inputs, 24 neurons, and a membrane for each class."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 24), neuron(24), nn.Linear(24, 2), snn.Readout(2))


def spirals(
    samples: int = SAMPLES, noise: float = 0.0, seed: int = 0, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """Make points of two arms of a spiral, as currents ``[T, B, 2]``, and which arm they are of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    along = torch.linspace(0.2, 1.0, samples)
    angle = 2.2 * math.pi * along + math.pi * labels
    points = 1.5 * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    points += noise * torch.randn(samples, 2, generator=generator)
    return points.expand(steps, samples, 2), labels


def delays(seed: int = 0, steps: int = 24) -> tuple[Tensor, Tensor]:
    """Make pairs of spikes ``[T, B, 2]``, and whether they are at most three steps apart."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, steps - 4, (SAMPLES,), generator=generator)
    near = torch.arange(SAMPLES) % 2 == 0
    close = first + torch.randint(-3, 4, (SAMPLES,), generator=generator)
    second = torch.where(near, close, torch.randint(0, steps - 4, (SAMPLES,), generator=generator))
    times = torch.stack([first, second.clamp(0, steps - 5)], 1)
    labels = ((times[:, 0] - times[:, 1]).abs() <= 3).long()
    return torch.nn.functional.one_hot(times, steps).permute(2, 0, 1).float(), labels


def data(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Make the data sets of the networks by their names; of another seed they are held out."""
    noisy = {"spirals": spirals(noise=0.05, seed=seed), "delays": delays(seed)}
    return noisy | {"few and noisy": spirals(FEW if seed == 0 else SAMPLES, 0.25, seed)}


def write_network(path: Path) -> None:
    """Write the page of the networks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    networks = {name: network(neuron) for name, neuron in CHOICES.items()}
    tt.plot.save_playground(networks, path, data=data(), held_out=data(seed=1))


def main() -> None:
    """Parse the command line and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/playground"))
    options = parser.parse_args()
    for name, made in (("neurons", write), ("network", write_network)):
        path = options.out / f"{name}.html"
        made(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
