"""Train by tt.recipe, as it is, on tasks for which nothing was chosen, beside a GRU at its best.

The tasks are all sets for classification in the package sktime that have at most 500 steps, but for
its UnitTest and what other scripts train on: one to six standardised signals, 36 to 200 sequences
to learn from. Two hidden layers of 64 neurons behind batch norms and a readout, the mean over time,
half-lives at their defaults; the GRU has 64 units, and is read at the last step, or by the mean
over time as well. Each trains for as many steps of the optimizer, on batches of 16.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import tracetorch as tt
from examples import common, networks, vowels

NAME = "kept_aside"
RESULTS = common.RESULTS / f"networks/{NAME}.jsonl"
TASKS = {
    "ArrowHead": "arrow_head",
    "BasicMotions": "basic_motions",
    "GunPoint": "gunpoint",
    "ItalyPowerDemand": "italy_power_demand",
    "OSULeaf": "osuleaf",
}
NEURONS = ("LIF", "SEAdLIF")
GRUS = ("GRU", "GRU, mean over time")  # read at the last step, and as the spiking networks are
GRU_RATES = (5e-3, 1e-2, 2e-2)
WIDTH, DROPOUT, SMOOTHING, BATCH, STEPS = 64, 0.1, 0.1, 16, 600
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.kept_aside --help``."""
    options = common.Options(f"examples.{NAME}", __doc__ or "")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    return common.measure_missing(options, arguments, RESULTS, runs, measure, table)


def runs(options: argparse.Namespace) -> Iterator[Row]:
    """Return every network with its rates, on every task."""
    ways = [*((name, None) for name in NEURONS), *((gru, r) for gru in GRUS for r in GRU_RATES)]
    for task in options.tasks:
        for network, lr in ways:
            for seed in options.seeds:
                yield {"task": task, "network": network, "lr": lr, "seed": seed}


@cache
def load(task: str) -> tuple[tt.data.Sequences, tt.data.Sequences]:
    """Return the training and the test set of a task, standardised by the training set."""
    from sktime import datasets

    read = getattr(datasets, f"load_{TASKS[task]}")
    (x, labels), (x_test, labels_test) = (
        read(split=split, return_X_y=True, return_type="numpy3d") for split in ("train", "test")
    )
    names = sorted(set(labels))
    mean, deviation = x.mean((0, 2), keepdims=True), x.std((0, 2), keepdims=True)
    learnt, test = (
        tt.data.Sequences(
            list(torch.tensor((signals - mean) / deviation).float().mT),
            torch.tensor([names.index(name) for name in given]),
        )
        for signals, given in ((x, labels), (x_test, labels_test))
    )
    return learnt, test


def measure(options: argparse.Namespace, run: Row) -> Row:
    """Train a network; return its accuracy on the test set and its cost."""
    learnt, test = load(run["task"])
    inputs, classes = learnt[0][0].shape[1], int(learnt.labels.max()) + 1
    torch.manual_seed(run["seed"])
    if run["network"] in GRUS:
        mean = run["network"] == GRUS[1]
        model: nn.Module = networks.GRU(inputs, classes, WIDTH, DROPOUT, mean=mean)
    else:
        model = networks.Spiking(
            inputs, classes, run["network"], width=WIDTH, dropout=DROPOUT, norm=True
        )
    wall, cpu = time.perf_counter(), time.process_time()
    train(model, learnt, 1 if options.quick else STEPS, run)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "accuracy": networks.accuracy(model, vowels.logits, test, 250),
        "training accuracy": networks.accuracy(model, vowels.logits, learnt, 250),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
    }


def train(model: nn.Module, learnt: tt.data.Sequences, total: int, run: Row) -> None:
    """Train for ``total`` steps: by the recipe, or a GRU by AdamW in one cycle up to its rate."""
    if run["lr"] is None:
        x, _, mask = next(iter(DataLoader(learnt, 200, collate_fn=tt.data.collate)))
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer, schedule = tt.recipe(model, x, total, mask=mask)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run["lr"], total)
    order = torch.Generator().manual_seed(run["seed"])
    drawn = torch.utils.data.RandomSampler(learnt, num_samples=total * BATCH, generator=order)
    for x, y, mask in DataLoader(learnt, BATCH, sampler=drawn, collate_fn=tt.data.collate):
        loss = cross_entropy(vowels.logits(model, x, mask), y, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def table(rows: Sequence[Row]) -> str:
    """Return the table: a line for each task, test accuracies of each network."""
    lines = [
        "| set | signals, steps, classes | to learn from, to test on | LIF | SEAdLIF "
        "| GRU, read at the last step | GRU, mean over time |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        learnt, test = load(task)
        steps, signals = learnt[0][0].shape
        found: dict[tuple[str, float | None], list[float]] = {}
        for row in rows:
            if row["task"] == task:
                found.setdefault((row["network"], row["lr"]), []).append(row["accuracy"])
        scores = [found.get((neuron, None), [0.0]) for neuron in NEURONS]
        for gru in GRUS:
            measured = (found.get((gru, rate), [0.0]) for rate in GRU_RATES)
            scores.append(max(measured, key=statistics.mean))
        cells = [
            f"{signals}, {steps}, {int(learnt.labels.max()) + 1}",
            f"{len(learnt)}, {len(test)}",
            *map(common.percent, scores),
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
