"""Measure what each part of tt.recipe is worth, on three tasks, beside a GRU at its best rate.

Two hidden layers and a readout, as in examples.networks, learn digits by rows, vowels and made-up
words with some parts of the recipe, for as many passes each: half-lives from one step to the
longest sequence, a batch norm before each neuron layer, calibration with rates relative to the
weights, 3e-2 in place of 1e-2. All learn on the same data, without those of the validation, and are
measured on both validation and test data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import tracetorch as tt
from examples import common, networks, row_digits, vowels, words

NAME = "recipe_parts"
RESULTS = (
    common.RESULTS / f"networks/{NAME}.jsonl"
)  # rows of other columns than those of the other tasks
SMOOTHING, DROPOUT = 0.1, 0.2
Row = dict[str, Any]


class Task(NamedTuple):
    """A script of examples, the sizes of its networks and the length of its training."""

    script: Any
    logits: networks.Logits
    inputs: int
    classes: int
    width: int
    batch: int
    epochs: int


TASKS = {
    "vowels": Task(vowels, vowels.logits, 12, 9, 64, 30, 30),
    "words": Task(words, vowels.logits, 40, 10, 64, 50, 10),
    "row_digits": Task(row_digits, row_digits.logits, 28, 10, 128, 50, 5),
}
NEURONS = ("LIF", "SEAdLIF")


class Parts(NamedTuple):
    """The parts of the recipe that a training has."""

    lr: float
    calibrated: bool = True
    spread: bool = True
    norm: bool = True


PARTS = {
    "none": Parts(1e-2, calibrated=False, spread=False, norm=False),
    "calibration": Parts(1e-2, spread=False, norm=False),
    "calibration, spread": Parts(1e-2, norm=False),
    "calibration, spread, 3e-2": Parts(3e-2, norm=False),
    "calibration, spread, norm": Parts(1e-2),
    "spread, norm, 3e-2": Parts(3e-2, calibrated=False),
    "all: calibration, spread, norm, 3e-2": Parts(3e-2),
}
GRU_RATES = (5e-3, 1e-2, 2e-2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.recipe_parts --help``."""
    options = common.Options(f"examples.{NAME}", __doc__ or "")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    return common.measure_missing(options, arguments, RESULTS, all_runs, measure, table)


def all_runs(options: argparse.Namespace) -> Iterator[Row]:
    """Return every run on every task, seed by seed, so that what is cut off has all parts."""
    for seed in options.seeds:
        for name in options.tasks:
            for network, part in runs():
                yield {"task": name, "network": network, "part": part, "seed": seed}


def runs() -> list[tuple[str, str]]:
    """Return every network with every part, and the GRU with its rates."""
    spiking = [(neuron, part) for neuron in NEURONS for part in PARTS]
    return [*spiking, *(("GRU", f"{rate:g}") for rate in GRU_RATES)]


def measure(options: argparse.Namespace, run: Row) -> Row:
    """Train a network; return its scores and its cost."""
    task, network, part, seed = TASKS[run["task"]], run["network"], run["part"], run["seed"]
    choices = (argparse.Namespace(quick=options.quick, validation=which) for which in (True, False))
    (learnt, validation), (_, test) = (task.script.load(each) for each in choices)
    if task.script is row_digits:  # its training data are without the validation's already
        learnt, validation = row_digits.load(
            argparse.Namespace(quick=options.quick, validation=True)
        )
    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    parts = PARTS.get(part)
    if parts is None:
        model = networks.baseline("gru", task.inputs, task.classes, task.width, DROPOUT)
    else:
        model = networks.Spiking(
            task.inputs,
            task.classes,
            network,
            width=task.width,
            dropout=DROPOUT,
            norm=parts.norm,
        )
    _train(task, model, parts or Parts(float(part)), learnt, seed, options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    x, _, mask = next(iter(DataLoader(test, 250, collate_fn=tt.data.collate)))
    return {
        "accuracy": networks.accuracy(model, task.logits, test, 250),
        "validation": networks.accuracy(model, task.logits, validation, 250),
        **_activity(model, x, mask),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
    }


def _train(
    task: Task,
    model: nn.Module,
    parts: Parts,
    learnt: Dataset[Any],
    seed: int,
    options: argparse.Namespace,
) -> None:
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        learnt, task.batch, shuffle=True, generator=order, collate_fn=tt.data.collate
    )
    epochs = 1 if options.quick else task.epochs
    x, _, mask = next(iter(DataLoader(learnt, 200, collate_fn=tt.data.collate)))
    optimizer, schedule = _prepared(model, parts, x, mask, epochs * len(loader))
    for _ in range(epochs):
        for x, y, mask in loader:
            loss = cross_entropy(task.logits(model, x, mask), y, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _prepared(model: nn.Module, parts: Parts, x: Tensor, mask: Tensor, total: int) -> Any:
    """Return optimizer and schedule: those of the recipe, or of some of its parts."""
    if isinstance(model, networks.Spiking) and parts.calibrated and parts.spread:
        with contextlib.redirect_stdout(io.StringIO()):
            return tt.recipe(model, x, total, lr=parts.lr, mask=mask)
    spiking = isinstance(model, networks.Spiking)
    if spiking and parts.spread:
        tt.init.spread_(model, int(mask.sum(0).max()))
    if spiking and parts.calibrated:
        tt.init.calibrate_(model, x, target=1.0, mask=mask)
    relative = spiking and parts.calibrated
    groups = tt.param_groups(model, weight_decay=0.01, lr=parts.lr, relative=relative)
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in groups]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total)


@torch.no_grad()
def _activity(model: nn.Module, x: Tensor, mask: Tensor) -> Row:
    """Return the spikes per neuron and step, and the share of neurons without one."""
    names = [f"{name}.output" for name, m in model.named_modules() if type(m).__name__ in NEURONS]
    if not names:
        return {}
    model.eval()
    _, seen = tt.unroll(model, x, record=names, from_rest=True)
    spikes = torch.cat([each[mask] for each in seen.values()], 1)
    return {"rate": spikes.mean().item(), "silent": (spikes == 0).all(0).float().mean().item()}


def table(rows: Sequence[Row]) -> str:
    """Return the table: a line for each network and part, validation and test of each task."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault((row["network"], row["part"]), {}).setdefault(row["task"], []).append(row)

    def scores(network: str, part: str, task: str, score: str) -> list[float]:
        return [row[score] for row in found.get((network, part), {}).get(task, [])]

    def validated(task: str, rate: float) -> float:
        return statistics.mean(scores("GRU", f"{rate:g}", task, "validation") or [0.0])

    best = {task: f"{max(GRU_RATES, key=partial(validated, task)):g}" for task in TASKS}
    lines = [
        "| network | parts | vowels: validation | test | words: validation | test "
        "| digits: validation | test | silent |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, part in [*((n, p) for n in NEURONS for p in PARTS), ("GRU", "")]:
        cells = []
        for task in TASKS:
            for score in ("validation", "accuracy"):
                values = scores(network, part or best[task], task, score)
                cells.append(common.percent(values) if values else "")
        silent = scores(network, part, "words", "silent")
        cells.append(f"{100 * statistics.mean(silent):.0f} %" if silent else "")
        shown = part or f"the best of three rates, {', '.join(best.values())}"
        lines.append(f"| {network} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
