"""Measure a training step beside a GRU's: ``python -m benchmarks.training_step``.

Two hidden layers behind batch norms, as ``tt.recipe`` trains them, and a GRU of the same width, of
one layer, as in the tasks of ``examples.recipe_parts``, and of two: forward, backward, AdamW and
schedule, step by step in turn. Sizes are those of the tasks, and 128-128 over 50 steps; no dropout,
``AdamW(fused=True)`` and smoothed labels for all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import tracetorch as tt
from benchmarks.machine import machine
from tracetorch import snn


class Size(NamedTuple):
    """A batch ``[T, B, inputs]``, the width of both hidden layers, and the classes."""

    T: int
    B: int
    inputs: int
    width: int
    classes: int


SIZES = {
    "vowels": Size(23, 30, 12, 64, 9),
    "made-up words": Size(50, 50, 40, 64, 10),
    "digits by rows": Size(28, 50, 28, 128, 10),
    "128-128": Size(50, 64, 40, 128, 10),
}
NEURONS = ("LIF", "SEAdLIF")
GRUS = ("GRU", "GRU, two layers")


class GRU(nn.Module):
    """A GRU and a linear layer after its last step."""

    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(size.inputs, size.width, layers)
        self.head = nn.Linear(size.width, size.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' scores, ``[B, classes]``."""
        y: Tensor = self.head(self.gru(x)[0][-1])
        return y


def spiking(neuron: str, size: Size) -> nn.Sequential:
    """Build two layers of neurons behind norms, and a readout."""
    kind: Any = getattr(snn, neuron, None) or getattr(tt.neurons, neuron)
    layers: list[nn.Module] = []
    for inputs in (size.inputs, size.width):
        layers += [nn.Linear(inputs, size.width), nn.BatchNorm1d(size.width), kind(size.width)]
    return nn.Sequential(
        *layers, nn.Linear(size.width, size.classes), snn.Readout(size.classes, beta=0.95)
    )


def steps_of(size: Size, total: int) -> dict[str, Callable[[], None]]:
    """Return a training step for each network, by name."""
    torch.manual_seed(0)
    x, y = torch.randn(size.T, size.B, size.inputs), torch.arange(size.B) % size.classes
    models: dict[str, nn.Module] = {name: spiking(name, size) for name in NEURONS}
    prepared: dict[str, Any] = {}
    for name, model in models.items():
        with contextlib.redirect_stdout(io.StringIO()):
            prepared[name] = tt.recipe(model, x, total)
    for layers, name in enumerate(GRUS, 1):
        models[name] = GRU(size, layers)
        optimizer = torch.optim.AdamW(models[name].parameters(), fused=True)
        prepared[name] = optimizer, OneCycleLR(optimizer, 1e-2, total)

    def step(name: str) -> None:
        model, (optimizer, scheduler) = models[name], prepared[name]
        if name in GRUS:
            scores = model(x)
        else:
            tt.zero_states(model)
            scores = tt.decode.rate(tt.unroll(model, x))
        optimizer.zero_grad()
        cross_entropy(scores, y, label_smoothing=0.1).backward()
        optimizer.step()
        scheduler.step()

    return {name: lambda name=name: step(name) for name in prepared}  # type: ignore[misc]


def measure(size: Size, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a step for each network, run in turn."""
    steps = steps_of(size, rounds + 3)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found[3:]) for name, found in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each size: milliseconds, and in units of the GRU's of one layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    here = machine()
    print(f"{here['processor']}, {options.threads} threads, {here['date']}")
    print(f"\n| ms a step | [T, B, inputs], width | {' | '.join((*NEURONS, *GRUS))} |")
    print("|---|---|" + "---|" * len((*NEURONS, *GRUS)))
    for name, size in SIZES.items():
        found = measure(size, options.rounds)
        cells = [f"{found[each]:.2f} ({found[each] / found['GRU']:.2f}x)" for each in NEURONS]
        cells += [f"{found[each]:.2f}" for each in GRUS]
        shape = f"{[size.T, size.B, size.inputs]}, {size.width}"
        print(f"| {name} | {shape} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
