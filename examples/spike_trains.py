"""Predict the recorded spikes of a grasshopper's ear from the sound, millisecond by millisecond.

Two recordings of 10 s, of one auditory receptor cell, are inside the package nitime: a tone whose
loudness is noise of up to 200 Hz, and of up to 800 Hz, with the times of the cell's spikes (Rokem
et al., Journal of Neurophysiology 95, 2006). A network gets the loudness, and answers with the
log-odds of a spike in each millisecond. Of each recording six seconds are for training, two for
validation and two for the test. The score is how much better than a constant rate it predicts the
spikes, in bits for each of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import tracetorch as tt
from examples import common, networks
from examples.common import count
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "spike_trains"
SAMPLES = 10  # of the loudness, inputs of a step of 1 ms
SECONDS = "LLVLTLLVLT"  # of each recording: learnt, of the validation, of the test
WARM_UP = 50  # steps of a sequence that are not counted, for it begins from rest
CROP, BATCH = 200, 24
WIDTH, DROPOUT = 64, 0.2
MEMORY = 20  # steps that half-lives are spread over, and that the linear model sees
NEURONS = ("LIF", "SEAdLIF")
BASELINES = ("lnp", "gru")
RATES = ("2.5e-3", "5e-3", "1e-2")  # of the GRU: the table shows the best by validation
RIDGES = (10.0, 100.0, 1e3, 1e4)  # of the linear model
LAG = 14  # the longest delay: twice the lag of the spikes behind the sound
RUNS = (
    "--network lnp --seeds 0 1 2",  # in which nothing is drawn
    *(f"--network gru --lr {rate} --seeds 0 1 2" for rate in RATES),
    *(
        f"--network {name}{delays} --seeds 0 1 2"
        for delays in ("", f" --delays {LAG}")
        for name in NEURONS
    ),
)


class Part(NamedTuple):
    """Seconds of the recordings: loudness ``[1000, B, SAMPLES]``, spikes ``[1000, B, 1]``."""

    x: Tensor
    spikes: Tensor


class Data(NamedTuple):
    """Parts of the recordings that share no step."""

    learnt: Part
    validation: Part
    test: Part


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.spike_trains --help``."""
    options = common.Options(
        f"examples.{TASK}", __doc__ or "", epochs=300, lr=0.0, unit="steps of the optimizer"
    )
    add = options.add_argument
    add("--network", choices=(*NEURONS, *BASELINES), default="LIF", help="%(default)s, or another")
    add("--delays", type=count, default=0, metavar="N", help="learn delays of up to N steps")
    options.add_table()
    parsed = options.parse(arguments)
    if parsed.table:
        print(table(common.read(common.RESULTS / f"{TASK}.jsonl")), end="")
        return 0
    if parsed.delays and parsed.network in BASELINES:
        options.error(f"--network {parsed.network} has no delays: leave out --delays")
    if parsed.network == "lnp" and parsed.lr:
        options.error("--network lnp has no learning rate: leave out --lr")
    if parsed.network == "gru" and not parsed.lr:
        options.error("--network gru needs --lr, for example 1e-2")
    return common.run(TASK, configuration(parsed), parsed, load, learn, draw)


def configuration(options: argparse.Namespace) -> str:
    """Return the name of the run: ``LIF delays 12``, ``gru, lr 0.01``."""
    delays = f" delays {options.delays}" if options.delays else ""
    return f"{options.network}{delays}" + (f", lr {options.lr:g}" if options.lr else "")


def recordings() -> Part:
    """Return both recordings whole: loudness ``[10000, 2, SAMPLES]``, spikes ``[10000, 2, 1]``."""
    package = find_spec("nitime")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "examples.spike_trains reads the recordings from files inside nitime. Run: "
            "pip install --no-deps nitime"
        )
    # the files alone, for the package itself imports others
    folder = Path(package.origin).parent / "data"
    xs, counts = [], []
    for number in (1, 2):
        # a pressure every 50 microseconds, and microseconds of spikes
        pressure = np.loadtxt(folder / f"grasshopper_stimulus{number}.txt", usecols=1)
        times = np.loadtxt(folder / f"grasshopper_spike_times{number}.txt")
        level = 20 * np.log10(pressure)  # in decibels, up to a constant
        level = (level - level.mean()) / level.std()
        xs.append(level.reshape(10_000, SAMPLES, -1).mean(2))
        counts.append(np.bincount((times // 1000).astype(int), minlength=10_000))
    x, spikes = (torch.from_numpy(np.stack(each, 1)).float() for each in (xs, counts))
    return Part(x, spikes[..., None])


def load(options: argparse.Namespace) -> Data:
    """Load the seconds of each part; no step of one is in the warm-up of another."""
    whole = recordings()

    def seconds(kind: str) -> Part:
        which = [1000 * n for n, each in enumerate(SECONDS) if each == kind]
        return Part(*(torch.cat([t[n : n + 1000] for n in which], 1) for t in whole))

    return Data(*map(seconds, "LVT"))


class GRU(nn.Module):
    """GRU, and a linear readout of each of its steps.

    Shape:
        Input ``[T, B, SAMPLES]``, output ``[T, B, 1]``, as for all networks of this script.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SAMPLES, WIDTH)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-odds of a spike at every step."""
        y: Tensor = self.head(self.gru(x)[0])
        return y


class LNP(nn.Module):
    """Linear filter of the last steps, and a logistic function: a linear-nonlinear model.

    Shape:
        As :class:`GRU`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Linear(MEMORY * SAMPLES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-odds of a spike at every step."""
        y: Tensor = self.filter(self.windows(x))
        return y

    def windows(self, x: Tensor) -> Tensor:
        """Return what came in at each step and those before, ``[T, B, MEMORY * SAMPLES]``."""
        before = x.new_zeros(MEMORY - 1, *x.shape[1:])
        return torch.cat([before, x]).unfold(0, MEMORY, 1).flatten(2)

    @torch.no_grad()
    def fit(self, learnt: Part, ridge: float) -> None:
        """Fit the filter by Newton's method; ``ridge`` charges the squares of its weights."""
        x = self.windows(learnt.x)[WARM_UP:].flatten(0, 1).double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        spikes = learnt.spikes[WARM_UP:].flatten().double()
        charged = ridge * torch.eye(x.shape[1], dtype=torch.float64)
        charged[-1, -1] = 0
        weights = torch.zeros(x.shape[1], dtype=torch.float64)
        weights[-1] = spikes.mean().logit()
        for _ in range(20):
            p = (x @ weights).sigmoid()
            slope = x.T @ (spikes - p) - charged @ weights
            weights += torch.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + charged, slope)
        self.filter.weight.copy_(weights[None, :-1])
        self.filter.bias.copy_(weights[-1:])


def spiking(neurons: Any, delays: int = 0) -> nn.Sequential:
    """Build a layer of neurons, behind delays or without, and a readout with a short memory."""
    first: nn.Module = nn.Linear(SAMPLES, WIDTH)
    if delays:
        first = snn.DelayedLinear(SAMPLES, WIDTH, max_delay=delays, sigma=delays / 2)
    hidden = [first, nn.BatchNorm1d(WIDTH), neurons(WIDTH), nn.Dropout(DROPOUT)]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 1), snn.Readout(1, beta=0.3))


def build(options: argparse.Namespace) -> nn.Module:
    """Build the network that the options choose."""
    name: str = options.network
    if name in BASELINES:
        return GRU() if name == "gru" else LNP()
    return spiking(getattr(snn, name, None) or getattr(tt.neurons, name), options.delays)


def log_odds(model: nn.Module, x: Tensor) -> Tensor:
    """Return the log-odds of a spike at every step, ``[T, B, 1]``."""
    y: Tensor = (
        tt.unroll(model, x, from_rest=True) if isinstance(model, nn.Sequential) else model(x)
    )
    return y


def prepared(
    options: argparse.Namespace, model: nn.Module, learnt: Part
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return optimizer and schedule: those of the recipe, or the same for a baseline."""
    if isinstance(model, nn.Sequential):
        # pieces as long as what is to be remembered
        pieces = learnt.x.unflatten(0, (-1, MEMORY)).transpose(0, 1).flatten(1, 2)
        with contextlib.redirect_stdout(io.StringIO()):
            return tt.recipe(model, pieces, options.epochs, lr=options.lr or None)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.epochs)


def learn(options: argparse.Namespace, data: Data, seed: int) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    model = build(options)
    if isinstance(model, LNP):
        best = max(RIDGES, key=lambda ridge: _validated(model, data, ridge))
        model.fit(data.learnt, best)
    else:
        _train(options, model, data.learnt, seed)
    model.eval()
    names = ("bits per spike", "validation bits per spike", "training bits per spike")
    parts = (data.test, data.validation, data.learnt)
    scores = {name: measured(model, part) for name, part in zip(names, parts, strict=True)}
    mask = torch.ones(data.test.x.shape[:2], dtype=torch.bool)
    return model, {**scores, **networks.firing_rate(model, data.test.x, mask)}


def _validated(model: LNP, data: Data, ridge: float) -> float:
    model.fit(data.learnt, ridge)
    return measured(model, data.validation)


def _train(options: argparse.Namespace, model: nn.Module, learnt: Part, seed: int) -> None:
    """Train a network on pieces of the learnt seconds."""
    from tqdm import tqdm

    optimizer, schedule = prepared(options, model, learnt)
    draws = torch.Generator().manual_seed(seed)
    steps = torch.arange(CROP)[:, None]
    for step in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        networks.sharpen(model, step / options.epochs)
        which = torch.randint(learnt.x.shape[1], (BATCH,), generator=draws)
        start = torch.randint(1000 - CROP + 1, (BATCH,), generator=draws)
        x, spikes = (each[steps + start, which] for each in learnt)
        y = log_odds(model, x)
        loss = binary_cross_entropy_with_logits(y[WARM_UP:], spikes[WARM_UP:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    networks.sharpen(model, 1.0)


@torch.no_grad()
def measured(model: nn.Module, part: Part) -> float:
    """Return the bits per spike of a part, without the warm-up."""
    return bits_per_spike(log_odds(model, part.x)[WARM_UP:], part.spikes[WARM_UP:])


def bits_per_spike(log_odds: Tensor, spikes: Tensor) -> float:
    """Return by how many bits a spike is likelier than where the rate is constant.

    The difference of the log-likelihoods of a Bernoulli process of these odds, and of one with the
    mean rate of the same spikes, over ``log(2)`` and the number of spikes. Of a rate that is known
    it is the information that a single spike carries (Brenner et al., Neural Computation 12, 2000;
    Williamson et al., PLoS Computational Biology 11, 2015).
    """
    spikes = spikes.double()
    rate = spikes.mean().expand_as(spikes)
    odds = log_odds.double()
    gain = binary_cross_entropy_with_logits(
        rate.logit(), spikes, reduction="sum"
    ) - binary_cross_entropy_with_logits(odds, spikes, reduction="sum")
    return float(gain / spikes.sum() / math.log(2))


@torch.no_grad()
def draw(options: argparse.Namespace, data: Data, model: nn.Module) -> Figure:
    """Plot the loudness of a piece of the test, the rate that is predicted, and the spikes."""
    from matplotlib.figure import Figure

    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    shown = slice(WARM_UP, WARM_UP + 250)
    above.plot(data.test.x[shown, 0].mean(1).numpy(), color="0.5")
    above.set(ylabel="loudness", title="a piece of the test, in deviations of the loudness")
    rates = 1000 * log_odds(model, data.test.x)[shown, 0, 0].sigmoid()
    below.plot(rates.numpy(), color="C3", label="predicted")
    fired = data.test.spikes[shown, 0, 0].nonzero().flatten()
    below.eventplot(fired.numpy(), lineoffsets=-60, linelengths=80, color="black", label="recorded")
    below.set(ylabel="spikes per second", xlabel="ms")
    below.legend(loc="upper right")
    return figure


def table(rows: Sequence[common.Row]) -> str:
    """Return a line per network; of a baseline its best rate, by the validation."""
    found: dict[str, list[common.Row]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)

    def scores(name: str, score: str) -> list[float]:
        return [row.scores[score] for row in found[name]]

    shown: list[tuple[str, str]] = []
    shown += [("linear-nonlinear", "lnp")] * ("lnp" in found)
    rates = [name for name in found if name.startswith("gru, lr ")]
    if rates:
        kind = "validation bits per spike"
        best = max(rates, key=lambda name: statistics.mean(scores(name, kind)))
        shown.append((f"GRU, {best.removeprefix('gru, lr ')} the best of three rates", best))
    for more in ("", f" delays {LAG}"):
        names = [f"{name}{more}" for name in NEURONS]
        shown += [(name.replace(" d", ", d"), name) for name in names if name in found]
    lines = [
        "| network | bits per spike | validation | training | spikes | parameters | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = ("bits per spike", "validation bits per spike", "training bits per spike")
    for label, name in shown:
        bits = [_bits(scores(name, kind)) for kind in kinds]
        first = found[name][0]
        fired = "firing rate" in first.scores
        spikes = f"{statistics.mean(scores(name, 'firing rate')):.2f}" if fired else ""
        seconds = statistics.mean(row.cpu_seconds for row in found[name])
        cells = [label, *bits, spikes, f"{first.parameters:,}", f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bits(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
