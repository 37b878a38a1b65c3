"""Measure what quantisation costs: float, 8 and 4 bits, Xylo, on three tasks.

``python -m benchmarks.quantised_accuracy``. Each network is trained in floats, converted, trained
further through its integer forward from the same floats, and converted again. Inputs are spikes for
all, and the class is the output neuron that fires most.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tracetorch import snn
from tracetorch.chips import xylo

TARGETS: dict[str, dict[str, Any]] = {
    "int8": {},
    "4 bits": {"weight_bits": 4},
    "Xylo": {"chip": xylo.XYLO_2},
}


class Task(NamedTuple):
    """Spikes ``[T, N, features]`` with their classes, to train and to measure, and the passes."""

    x: Tensor
    classes: Tensor
    held_out: Tensor
    targets: Tensor
    width: int
    batch: int
    epochs: int


def digits() -> Task:
    """Rate-coded digits: every pixel fires with its brightness, ten steps."""
    data = tt.data.load_digits()
    generator = torch.Generator().manual_seed(0)
    parts = [
        (tt.encode.rate(images.flatten(1), 10, generator=generator), labels)
        for images, labels in (data.train.tensors, data.held_out.tensors)
    ]
    return Task(*parts[0], *parts[1], width=64, batch=100, epochs=5)


def rows() -> Task:
    """Digits by rows: a row of pixels a step, bright ones fire."""
    data = tt.data.load_digits()
    parts = [
        ((images.squeeze(1).transpose(0, 1) > 0.5).float(), labels)
        for images, labels in (data.train.tensors, data.held_out.tensors)
    ]
    return Task(*parts[0], *parts[1], width=64, batch=100, epochs=8)


def vowels() -> Task:
    """Spoken vowels: five receptive fields for each coefficient, those near it fire."""
    parts = []
    for sequences in tt.data.japanese_vowels():
        x, mask = tt.data.pad(list(sequences.sequences))
        fields = tt.encode.population(x, 5, low=-1.0, high=1.5) > 0.4
        parts.append(((fields.flatten(2) & mask.unsqueeze(-1)).float(), sequences.labels))
    return Task(*parts[0], *parts[1], width=48, batch=30, epochs=40)


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "rows": rows, "vowels": vowels}


def network(task: Task, seed: int) -> nn.Sequential:
    """Build hidden and output neurons with synapses."""
    torch.manual_seed(seed)
    inputs, outputs = task.x.shape[-1], int(task.classes.max()) + 1
    return nn.Sequential(
        nn.Linear(inputs, task.width),
        snn.SLIF(task.width, 0.5, 0.9),
        nn.Linear(task.width, outputs),
        snn.SLIF(outputs, 0.5, 0.9),
    )


def train(model: nn.Module, task: Task, epochs: int, rate: float) -> None:
    """Train in place on the numbers of output spikes."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for index in torch.randperm(len(task.classes)).split(task.batch):
            y = tt.unroll(model, task.x[:, index], from_rest=True)
            optimizer.zero_grad()
            cross_entropy(y.sum(0), task.classes[index]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """Return the share of the held-out samples that are right, in %."""
    y = tt.unroll(model, task.held_out, from_rest=True)
    tt.zero_states(model)
    return float((y.sum(0).argmax(-1) == task.targets).double().mean()) * 100


def file_size(model: nn.Module) -> int:
    """Return the bytes of a saved model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        tt.save(model, path)
        return path.stat().st_size


def measure(task: Task, seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Return accuracies before and after training through integers, and sizes, by target."""
    epochs = 1 if quick else task.epochs
    model = network(task, seed)
    train(model, task, epochs, 5e-3)
    found = {"float": {"converted": accuracy(model, task)}}
    sample = task.x[:, : 2 * task.batch]
    targets = {name: tt.quantize.prepare(model, sample, **a) for name, a in TARGETS.items()}
    for name, prepared in targets.items():
        integer, _ = tt.quantize.convert(prepared)
        found[name] = {"converted": accuracy(integer, task)}
        torch.manual_seed(seed)
        train(prepared, task, epochs, 2e-3)
        integer, report = tt.quantize.convert(prepared)
        found[name]["trained"] = accuracy(integer, task)
        found[name] |= {"file": file_size(integer), "packed": report.num_bytes}
    torch.manual_seed(seed)
    train(model, task, epochs, 2e-3)
    found["float"]["trained"] = accuracy(model, task)
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    found["float"] |= {"file": file_size(model), "packed": size}
    return found


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation in %."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table of all tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one pass of training: a test")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| task | numbers | converted | trained on | lost | file | packed |")
    print("|---|---|---|---|---|---|---|")
    start = time.process_time()
    for name in options.tasks:
        task = TASKS[name]()
        runs = [measure(task, seed, options.quick) for seed in options.seeds]
        best = statistics.mean(run["float"]["trained"] for run in runs)
        for target in ("float", *TARGETS):
            each = [run[target] for run in runs]
            trained = [one["trained"] for one in each]
            lost = "" if target == "float" else f"{best - statistics.mean(trained):.1f}"
            print(
                f"| {name} | {target} | {spread([one['converted'] for one in each])} "
                f"| {spread(trained)} | {lost} | {each[0]['file']:,} | {each[0]['packed']:,} |",
                flush=True,
            )
    print(f"\n{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
