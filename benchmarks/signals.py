"""Measure regression of smooth signals beside a GRU: a driven mass, and chaotic series.

``python -m benchmarks.signals``, about ten minutes of one core for each seed. A driven mass is
followed as its force jumps; of a series, the target is what comes ten steps later. All train on the
same batches of 64 samples of 100 steps: two layers of recurrent LIF neurons by ``tt.recipe``, 900
updates, and a GRU of 128 units, 300 updates at the best of three rates by the test samples.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.machine import machine
from tracetorch import snn

STEPS, BATCH, AHEAD, WIDTH, UNITS = 100, 64, 10, 64, 128
SKIPPED = 500  # steps of a flow before its series begins
SAMPLES = 4096, 512  # to train and to test
UPDATES = {"LIF": 900, "GRU": 300}
RATES = (3e-3, 1e-2, 2e-2)  # of the GRU

# from a number of samples and a generator to an input and a target, [steps, samples]
Signal = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def driven_mass(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A force that jumps now and then, and where it moves a mass on a spring with friction."""
    jumps = torch.rand(STEPS, samples, generator=generator) < 0.1
    levels = torch.randn(STEPS, samples, generator=generator)
    force = place = speed = torch.zeros(samples)
    forces, places = [], []
    for jump, level in zip(jumps.unbind(), levels.unbind(), strict=True):
        force = torch.where(jump, level, force)
        speed = speed + 0.1 * (force - place - 0.4 * speed)
        place = place + 0.4 * speed
        forces.append(force)
        places.append(place)
    return torch.stack(forces), torch.stack(places)


def mackey_glass(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x``, one step a unit of time."""
    parts, lag, skipped = 10, 17, 300  # steps of Euler in a unit, the delay, what is left out
    start = 1.2 + 0.2 * torch.randn(samples, generator=generator)
    values = [start] * (lag * parts)
    for _ in range((skipped + STEPS + AHEAD) * parts):
        x, late = values[-1], values[-lag * parts]
        values.append(x + (0.2 * late / (1 + late**10) - 0.1 * x) / parts)
    series = torch.stack(values)[(lag + skipped) * parts :: parts]
    return series[:-AHEAD], series[AHEAD:]


def flow(
    slope: Callable[..., Sequence[Tensor]], start: tuple[float, ...], dt: float, parts: int
) -> Signal:
    """Return the first variable of differential equations, by steps of Runge and Kutta."""

    def series(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(start), samples, generator=generator, dtype=torch.float64)
        state, h, found = torch.tensor(start)[:, None] + noise, dt / parts, []
        for step in range((SKIPPED + STEPS + AHEAD) * parts):
            a = torch.stack([*slope(*state)])
            b = torch.stack([*slope(*(state + h / 2 * a))])
            c = torch.stack([*slope(*(state + h / 2 * b))])
            d = torch.stack([*slope(*(state + h * c))])
            state = state + h / 6 * (a + 2 * b + 2 * c + d)
            if step >= SKIPPED * parts and step % parts == 0:
                found.append(state[0].float())
        both = torch.stack(found)
        return both[:-AHEAD], both[AHEAD:]

    return series


def lorenz(x: Tensor, y: Tensor, z: Tensor) -> Sequence[Tensor]:
    return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z


def roessler(x: Tensor, y: Tensor, z: Tensor) -> Sequence[Tensor]:
    return -y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)


def duffing(x: Tensor, y: Tensor, phase: Tensor) -> Sequence[Tensor]:
    return y, x - x**3 - 0.3 * y + 0.5 * torch.cos(phase), torch.full_like(phase, 1.2)


SIGNALS: dict[str, Signal] = {
    "driven mass": driven_mass,
    "Mackey-Glass": mackey_glass,
    "Lorenz, dt = 0.02": flow(lorenz, (1, 1, 25), 0.02, 2),
    "Lorenz, dt = 0.04": flow(lorenz, (1, 1, 25), 0.04, 4),
    "Rössler, dt = 0.2": flow(roessler, (0, 0, 0), 0.2, 4),
    "Duffing, dt = 0.2": flow(duffing, (0, 0, 0), 0.2, 2),
}


class Gated(nn.Module):
    """A GRU of one layer with a linear readout, a step of the output for each of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.readout = nn.GRU(1, UNITS), nn.Linear(UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.readout(self.units(x)[0])
        return y


def spiking() -> nn.Sequential:
    """Build two layers of recurrent LIF neurons behind norms, and a readout."""
    first, second = (snn.Recurrent(snn.LIF(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
    return nn.Sequential(
        *(nn.Linear(1, WIDTH), nn.BatchNorm1d(WIDTH), first),
        *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), second),
        *(nn.Linear(WIDTH, 1), snn.Readout(1)),
    )


class Samples(NamedTuple):
    """Input and target ``[steps, samples, 1]``, to train and to test, and what draws batches."""

    tensors: list[Tensor]
    generator: torch.Generator


def samples_of(signal: Signal, seed: int) -> Samples:
    """Return samples to train on, and others to test on, of the mean and deviation of the first."""
    generator = torch.Generator().manual_seed(seed)
    raw, raw_test = (signal(count, generator) for count in SAMPLES)
    tensors = [
        ((each - like.mean()) / like.std())[..., None]
        for each, like in zip((*raw, *raw_test), raw * 2, strict=True)
    ]
    return Samples(tensors, generator)


class Found(NamedTuple):
    """The share of the test samples' variance that is explained, and the seconds of training."""

    share: float
    seconds: float


def train(samples: Samples, seed: int, rate: float | None = None) -> Found:
    """Train the GRU at a rate, or without one the spiking network by the recipe, and test it."""
    x, target, x_test, target_test = samples.tensors
    generator = samples.generator.clone_state()  # the same batches at every rate
    torch.manual_seed(seed)
    model: nn.Module = spiking() if rate is None else Gated()
    run = partial(tt.unroll, model, from_rest=True) if rate is None else model
    updates = UPDATES["LIF" if rate is None else "GRU"]
    start = time.perf_counter()
    schedule: torch.optim.lr_scheduler.LRScheduler
    if rate is None:
        with contextlib.redirect_stdout(None):
            optimizer, schedule = tt.recipe(model, x[:, :BATCH], updates, target=target[:, :BATCH])
    else:
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, updates)
    for _ in range(updates):
        some = torch.randint(x.shape[1], (BATCH,), generator=generator)
        loss = nn.functional.mse_loss(run(x[:, some]), target[:, some])
        optimizer.zero_grad()
        loss.backward()
        if rate is not None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        error = (run(x_test) - target_test).square().mean() / target_test.var()
    return Found(1 - float(error), seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table: means of the seeds, with the least and the most."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signals", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument(
        "--signals", nargs="*", default=[*SIGNALS], choices=SIGNALS, help="of all, by name"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{machine()['processor']}, one thread, seeds 0 to {given.seeds - 1}\n")
    print("| signal | LIF explains | seconds | GRU explains | seconds |\n|---|---|---|---|---|")
    for name in given.signals:
        cells = [name]
        by_recipe, by_rate = list[Found](), list[Found]()
        for seed in range(given.seeds):
            samples = samples_of(SIGNALS[name], seed)
            by_recipe.append(train(samples, seed))
            by_rate.append(max(train(samples, seed, rate) for rate in RATES))
        for found in (by_recipe, by_rate):
            shares = [100 * each.share for each in found]
            spread = f" ({min(shares):.1f} to {max(shares):.1f})" if given.seeds > 1 else ""
            cells.append(f"{statistics.mean(shares):.1f} %{spread}")
            cells.append(f"{statistics.median(each.seconds for each in found):.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    sizes = (sum(each.numel() for each in model.parameters()) for model in (spiking(), Gated()))
    print("\nParameters: LIF {:,}, GRU {:,}".format(*sizes))


if __name__ == "__main__":
    main()
