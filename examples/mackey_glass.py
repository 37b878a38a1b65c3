"""Predict a chaotic series by the times of spikes: NeuroBench's Mackey-Glass benchmark.

Its protocol: from the first 750 values of a stretch the network learns, the 750 that follow it
predicts on its own, each from its own last ones; 30 stretches start half a Lyapunov time apart, and
the score is the mean of their symmetric errors in percent (sMAPE). NeuroBench's package measures
scores and operations. The series is made here, from the same equation and start as the board's,
whose own file is a download: chaos makes the two differ after some Lyapunov times.

A value is a pulse on neurons whose membranes then rise steadily, so when each fires says what the
value was. A linear readout of the spikes of the last ten values, and of these values, is fitted by
ridge regression.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import common
from tracetorch import snn
from tracetorch.core.checks import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "mackey_glass"
RESULTS = common.RESULTS / "networks"  # rows of other columns than those of the other tasks
Row = dict[str, Any]

# The board's equation, dx/dt = BETA x(t - TAU) / (1 + x(t - TAU) ** 10) - GAMMA x, with what stands
# before its start, its Lyapunov time, and the values that it takes of each
BETA, GAMMA, TAU, BEFORE = 0.2, 0.1, 17, 0.7206597
LYAPUNOV, PER_LYAPUNOV = 197, 75
LEARNT = PREDICTED = 10 * PER_LYAPUNOV
# stretches of validation lie behind all that are measured
VALIDATION = 40 * PER_LYAPUNOV
# of the board, where these were the only two entries in November 2026: sMAPE, bytes, dense and
# effective operations of a value
PUBLISHED = {
    "LSTM": (13.37, 4.90e5, 6.03e4, 6.03e4),
    "ESN": (14.79, 2.81e5, 3.52e4, 4.37e3),
}

# Chosen on validation data: values that a neuron tells apart, how many values back are read, what
# ridge regression charges, and how near two values are for weights to be alike
LOW, HIGH, LAGS, RIDGE, WIDTH = 0.2, 1.4, 10, 1e-3, 0.1


def series(values: int) -> Tensor:
    """Integrate the equation from the end of its constant start on; return ``values`` of it.

    In a stretch as long as the delay what enters is known, and the rest is linear: so it is exact
    but for a cubic interpolation and Simpson's rule.
    """
    # values and the delay are whole numbers of steps
    h, lag = 1 / PER_LYAPUNOV, TAU * PER_LYAPUNOV
    half, whole = math.exp(-GAMMA * h / 2), math.exp(-GAMMA * h)
    powers = whole ** torch.arange(1, lag + 1, dtype=torch.float64)
    x = torch.full((lag + 1,), BEFORE, dtype=torch.float64)
    slope = torch.zeros_like(x)
    parts, count = [], 0
    while count < values * LYAPUNOV + lag:
        middle = (x[1:] + x[:-1]) / 2 + h / 8 * (slope[:-1] - slope[1:])
        enters, between = (BETA * each / (1 + each**10) for each in (x, middle))
        added = h / 6 * (whole * enters[:-1] + 4 * half * between + enters[1:])
        x = torch.cat([x[-1:], powers * (x[-1] + (added / powers).cumsum(0))])
        slope = enters - GAMMA * x
        parts.append(x[:-1])
        count += lag
    # NeuroBench's generator begins behind the first delay
    return torch.cat(parts)[lag::LYAPUNOV][:values]


class Encoder(snn.Neuron):
    """Integrate-and-fire without a leak, and with a threshold of its own for each neuron."""

    states = ("membrane",)

    def __init__(self, thresholds: Tensor) -> None:
        super().__init__(len(thresholds))
        self.threshold("theta", thresholds, learnable=False)

    @staticmethod
    def step(
        x: Tensor, membrane: Tensor, *, theta: Tensor, spike: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Add the input; a spike empties the membrane."""
        membrane = membrane + x
        fired = spike(membrane - theta)
        return fired, membrane * (1 - fired)


class Predictor(nn.Module):
    """Neurons that fire once for a value, and readouts of the last values and their spikes.

    Args:
        neurons: how many; each has another threshold within a rise.
        steps: that a membrane rises for each value.
        seed: of the thresholds.
    """

    values: Tensor
    spikes: Tensor

    def __init__(self, neurons: int = 64, steps: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.neurons, self.steps = neurons, steps
        generator = torch.Generator().manual_seed(seed)
        shares = (torch.arange(neurons) + torch.rand(neurons, generator=generator)) / neurons
        rise = (HIGH - LOW) / (steps - 1)
        thresholds = HIGH + rise * shares
        encode = nn.Linear(1, neurons)
        nn.init.ones_(encode.weight)
        nn.init.constant_(encode.bias, rise)
        self.encoder = nn.Sequential(encode, Encoder(thresholds))
        self.of_values = nn.Linear(LAGS, 1)
        self.of_spikes = nn.Linear(LAGS * steps * neurons, 1, bias=False)
        self.requires_grad_(False)
        # the value at which a neuron begins to fire in a step [steps, neurons]
        self.levels = thresholds - rise * torch.arange(1, steps + 1)[:, None]
        # what a prediction reads, the newest first; buffers count as memory
        self.register_buffer("values", torch.zeros(1, LAGS))
        self.register_buffer("spikes", torch.zeros(1, LAGS, steps * neurons, dtype=torch.bool))

    def encode(self, values: Tensor) -> Tensor:
        """Return the spikes of some values ``[n, 1]``, as ``[n, steps * neurons]``."""
        pulses = torch.zeros(self.steps, len(values), 1)
        pulses[0] = values
        fired: Tensor = tt.unroll(self.encoder, pulses, from_rest=True)
        return fired.transpose(0, 1).flatten(1)

    def forward(self, value: Tensor) -> Tensor:
        """Return the next value, ``[1, 1]`` as the last one."""
        self.values = torch.cat([value, self.values[:, :-1]], 1)
        newest = self.encode(value).bool()[:, None]
        self.spikes = torch.cat([newest, self.spikes[:, :-1]], 1)
        y: Tensor = self.of_values(self.values) + self.of_spikes(self.spikes.flatten(1).float())
        return y

    def fit(self, series: Tensor, *, spikes: bool = True) -> None:
        """Fit the readouts to a series ``[n]``, and go to its end.

        Of all readouts that predict as well it is the one whose weights are smallest, where those
        of spikes that say nearly the same value count as one: the solution of ridge regression with
        a Gaussian covariance of the weights. ``spikes=False`` leaves all of these at 0.
        """
        fired = self.encode(series[:, None].float()).double()
        apart = self.levels.flatten().double()
        alike = torch.exp(-((apart[:, None] - apart) ** 2) / (2 * WIDTH**2)) / self.neurons**2
        smooth = fired @ alike
        near = smooth @ fired.T
        first, last = LAGS - 1, len(series) - 1
        parts = [slice(first - lag, last - lag) for lag in range(LAGS)]
        past = torch.stack([series[part] for part in parts], 1)
        mean = past.mean(0)
        change = series[LAGS:] - series[first:last]
        # values are hardly charged
        gram = 1e9 * (past - mean) @ (past - mean).T
        for part in parts if spikes else ():
            gram += near[part, part] / RIDGE
        gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
        gram.diagonal().add_(1.0)
        dual = torch.linalg.solve(gram, change - change.mean())
        dual -= dual.mean()
        of_values = 1e9 * dual @ (past - mean)
        of_spikes = torch.stack([dual @ smooth[part] for part in parts]) / RIDGE * spikes
        found = past @ of_values
        for part, weight in zip(parts, of_spikes, strict=True):
            found += fired[part] @ weight
        # what is added to the last value
        of_values[0] += 1
        self.of_values.weight.copy_(of_values[None])
        self.of_values.bias.fill_(float((change - found).mean()))
        self.of_spikes.weight.copy_(of_spikes.flatten()[None])
        self.values.copy_(series[-LAGS:].flip(0)[None])
        self.spikes.copy_(fired[-LAGS:].flip(0)[None].bool())


def measure(net: Predictor, stretch: Tensor) -> dict[str, Any]:
    """Return what NeuroBench measures as the network predicts what follows what it has learned."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import SMAPE, ActivationSparsity, SynapticOperations
    from neurobench.models import NeuroBenchModel
    from torch.utils.data import DataLoader, TensorDataset

    class Autonomous(NeuroBenchModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_activation_module(Encoder)

        def __net__(self) -> nn.Module:
            return net

        def __call__(self, values: Tensor) -> Tensor:
            """Predict from the first of the values, then from predictions."""
            found = [values[0]]
            for _ in values:
                found.append(net(found[-1]))
            return torch.cat(found[1:])

    ahead = stretch[LEARNT:].float()
    inputs, targets = ahead[:-1].view(-1, 1, 1), ahead[1:, None]
    loader = DataLoader(TensorDataset(inputs, targets), len(inputs))
    metrics = [[Footprint, ConnectionSparsity], [SMAPE, ActivationSparsity, SynapticOperations]]
    return dict(Benchmark(Autonomous(), loader, [], [], metrics).run(quiet=True))


def configuration(options: argparse.Namespace) -> str:
    """Return the name of a run."""
    name = "values alone" if options.linear else f"{options.neurons} neurons"
    return f"{name}, validation" if options.validation else name


@torch.no_grad()
def run(options: argparse.Namespace, whole: Tensor, seed: int) -> tuple[Row, Tensor]:
    """Measure all stretches; return a row, and the end of the last one beside its prediction."""
    began = time.process_time()
    scores, found = [], {}
    for repeat in range(options.epochs):
        start = repeat * PER_LYAPUNOV // 2 + VALIDATION * options.validation
        stretch = whole[start : start + LEARNT + PREDICTED + 1]
        net = Predictor(options.neurons, options.steps, seed)
        net.fit(stretch[:LEARNT], spikes=not options.linear)
        found = measure(net, stretch)
        scores.append(found["SMAPE"])
    spent = time.process_time() - began
    net.fit(stretch[:LEARNT], spikes=not options.linear)
    value, shown = stretch[LEARNT : LEARNT + 1, None].float(), []
    for _ in range(PREDICTED):
        value = net(value)
        shown.append(value.item())
    operations = found["SynapticOperations"]
    row = {
        "configuration": configuration(options),
        "seed": seed,
        "smape": statistics.mean(scores),
        "scores": [round(score, 3) for score in scores],
        "bytes": found["Footprint"],
        "connection_sparsity": found["ConnectionSparsity"],
        "activation_sparsity": round(found["ActivationSparsity"], 4),
        "dense": operations["Dense"],
        "macs": operations["Effective_MACs"],
        "acs": operations["Effective_ACs"],
        "cpu_seconds": round(spent, 1),
        "threads": options.threads,
        "date": f"{date.today()}",
        "command": options.command,
        "torch": torch.__version__,
        "tracetorch": tt.__version__,
    }
    return row, torch.stack([stretch[LEARNT + 1 :], torch.tensor(shown, dtype=torch.float64)])


def parser() -> common.Options:
    """Return the parser of the command line."""
    from examples.common import count

    options = common.Options(f"examples.{TASK}", __doc__ or "", epochs=30, unit="stretches")
    add = options.add_argument
    add("--neurons", type=count, default=64, metavar="N", help="that fire (%(default)s)")
    add("--steps", type=count, default=32, metavar="N", help="for each value (%(default)s)")
    add("--linear", action="store_true", help="read the values alone, no spikes")
    add("--validation", action="store_true", help="measure later stretches, to choose settings")
    options.add_table()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.mackey_glass --help``."""
    options = parser().parse(arguments)
    if options.table:
        print(table(read(RESULTS)))
        return 0
    if options.quick:
        options.neurons, options.steps = min(options.neurons, 8), min(options.steps, 16)
    torch.set_num_threads(options.threads)
    try:
        require("matplotlib", extra="examples", by=f"examples.{TASK}")
        require("neurobench", extra="test-peers", by=f"examples.{TASK}")
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    whole = series(VALIDATION + 15 * PER_LYAPUNOV + LEARNT + PREDICTED + 1)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        row, shown = run(options, whole, seed)
        print(
            f"{row['configuration']}, seed {seed}: sMAPE {row['smape']:.2f} over "
            f"{len(row['scores'])} stretches; {row['acs']:,.0f} additions and {row['macs']:,.0f} "
            f"products a value, {row['bytes']:,} bytes; {row['cpu_seconds']} s of CPU",
            flush=True,
        )
        draw(shown).savefig(options.out / f"{TASK}-seed{seed}.png")
        write(row, RESULTS if options.record else options.out)
    return 0


def write(row: Row, folder: Path) -> None:
    """Add a row to those of a folder, in place of one of the same configuration and seed."""
    common.add_line(folder / f"{TASK}.jsonl", row, ("configuration", "seed"))


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder."""
    return common.read_lines(folder / f"{TASK}.jsonl")


def draw(shown: Tensor) -> Figure:
    """Plot a stretch and its prediction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    ax = figure.subplots()
    lyapunov_times = torch.arange(1, shown.shape[1] + 1) / PER_LYAPUNOV
    for line, label in zip(shown, ("series", "prediction"), strict=True):
        ax.plot(lyapunov_times, line, label=label)
    ax.set(xlabel="Lyapunov times", ylabel="x")
    ax.legend()
    return figure


def table(rows: Sequence[Row]) -> str:
    """Return the recorded results, a line for each configuration, behind the board's."""
    lines = [
        "| network | sMAPE | bytes | dense operations | effective products | additions |",
        "|---|---|---|---|---|---|",
    ]
    for name, (smape, size, dense, macs) in PUBLISHED.items():
        lines.append(
            f"| {name}, published | {smape} | {size:,.0f} | {dense:,.0f} | {macs:,.0f} | 0 |"
        )
    for name in dict.fromkeys(row["configuration"] for row in rows):
        own = [row for row in rows if row["configuration"] == name]
        last = own[-1]
        costs = (f"{last[cost]:,.0f}" for cost in ("bytes", "dense", "macs", "acs"))
        # of a network whose spikes are not read the count would be of what it does not need
        shown = " | | | " if name.startswith("values alone") else " | ".join(costs)
        lines.append(f"| {name}, ours | {common.spread([row['smape'] for row in own])} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
