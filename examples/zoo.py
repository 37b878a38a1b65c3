"""Verify the networks of ``tt.zoo``, or train them anew: each must be as its card says.

``verify`` measures them in float64: correct test samples and the spikes of every layer must equal
those of the card, on every machine. ``train`` trains from the recipe's seed, and the accuracy must
land in the interval of the card; --record trains from five seeds, and replaces file and card.

The interval is where 99 % of new trainings land, on another test set too: the mean over seeds, plus
or minus the root of ``t^2 s^2 (1 + 1 / n) + 2.58^2 2 p (1 - p) / N``. ``t`` is Student's quantile,
since the deviation is of few seeds; both test sets vary, the old and the new one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import networks
from tracetorch import snn
from tracetorch.chips import xylo
from tracetorch.core.files import atomic_replace
from tracetorch.data import Batch
from tracetorch.snn.neuron import spike_functions
from tracetorch.snn.states import named_neurons
from tracetorch.zoo.networks import FOLDER, NETWORKS, Data

SEEDS = 5  # of which a recorded network is trained
BATCH = 64  # samples of which spikes are counted
AT_ONCE = 250  # samples that are measured
CALIBRATION = 200  # samples
CLOSE = 1e-6  # relative, of the output, which is a sum
FAN_IN = 16  # connections into a neuron of words-xylo
NORMAL = 2.58  # quantile for 99 %
# Student's, for 99 %, of one degree of freedom and more
STUDENT = (63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "rate": partial(tt.loss.membrane_cross_entropy, over="mean"),
    "last": partial(tt.loss.membrane_cross_entropy, over="last"),
    "count": tt.loss.count_cross_entropy,
}
data_of = cache(lambda load: load())  # several networks have the same data


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 where all networks are as recorded."""
    parser = argparse.ArgumentParser("python -m examples.zoo", description=__doc__)
    parser.add_argument("command", choices=("verify", "train"))
    parser.add_argument("names", nargs="*", choices=[[], *NETWORKS], metavar="NAME", help="(all)")
    parser.add_argument("--record", action="store_true", help="with train: replace file and card")
    options = parser.parse_args(arguments)
    if options.record and options.command != "train":
        parser.error("argument --record: only with train")
    right = True
    for name in options.names or NETWORKS:
        start = time.perf_counter()
        if options.record:
            record(name)
            found = ", ".join(f"{share:.3f}" for share in tt.zoo.card(name).accuracies)
        elif options.command == "verify":
            found = "; ".join(differences(name)) or "verified"
            right = right and found == "verified"
        else:
            low, high = tt.zoo.card(name).interval
            numbers = measure(train(name), name)
            accuracy = numbers["correct"] / numbers["samples"]
            found = f"{accuracy:.3f} is {'' if low <= accuracy <= high else 'not '}in "
            found += f"{low:.3f} to {high:.3f}"
            right = right and low <= accuracy <= high
        print(f"{name}: {found}; {time.perf_counter() - start:.0f} s", flush=True)
    return 0 if right else 1


def differences(name: str) -> Iterator[str]:
    """Yield what is not as the card of a network says, in words."""
    card, path = tt.zoo.card(name), FOLDER / f"{name}.safetensors"
    if file_hash(path) != card.file_hash:
        yield f"the hash of {path} is not that of the card"
    if data_hash(data_of(NETWORKS[name][1])) != card.data_hash:
        yield "training or test data are not those of the card: their hash differs"
    found = measure(tt.zoo.load(name), name)
    for key in ("correct", "samples", "spikes"):
        if found[key] != getattr(card, key):
            yield f"{key}: {found[key]}, on the card {getattr(card, key)}"
    if abs(found["output"] - card.output) > CLOSE * abs(card.output):
        yield f"output: {found['output']:.9g}, on the card {card.output:.9g}"


@torch.no_grad()
def measure(model: nn.Module, name: str) -> dict[str, Any]:
    """Measure a network in float64, where rounding moves no spike across its threshold."""
    test, by = data_of(NETWORKS[name][1])[1], tt.zoo.card(name).by
    model = model.double()
    right = 0
    for index in torch.split(torch.arange(len(test.y)), AT_ONCE):
        x, labels, mask = part(test, index)
        y = tt.unroll(model, x.double(), from_rest=True)
        right += round(len(labels) * tt.metrics.accuracy(y, labels, by=by, mask=mask).item())
    x, _, mask = part(test, slice(BATCH))
    layers = [path for path, layer in named_neurons(model) if spike_functions(layer)]
    names = [f"{path}.output" for path in layers]
    y, seen = tt.unroll(model, x.double(), from_rest=True, record=names)
    # of real steps, all of a neuron that fires several a step
    spikes = {path: int(seen[f"{path}.output"][mask].abs().sum()) for path in layers}
    output = float(y[mask].abs().mean())
    return {"correct": right, "samples": len(test.y), "spikes": spikes, "output": output}


def train(name: str, seed: int | None = None) -> nn.Module:
    """Train a network by the recipe of its card; of integers, what becomes it first, in floats."""
    recipe, (build, load) = tt.zoo.card(name).recipe, NETWORKS[name]
    data = data_of(load)[0]
    torch.manual_seed(recipe["seed"] if seed is None else seed)
    whole = "integer_epochs" in recipe
    model = xylo_floats() if whole else build()
    x, _, mask = part(data, slice(CALIBRATION))
    if recipe["calibrate"]:
        tt.init.calibrate_(model, x, mask=mask)
    fit(model, name, data, recipe["epochs"], recipe["lr"], relative=recipe["calibrate"])
    if whole:
        model = tt.quantize.prepare(model, x, xylo.XYLO_2)
        # its weights have units of their own, to which calibration means nothing
        fit(model, name, data, recipe["integer_epochs"], recipe["integer_lr"], relative=False)
        model = nn.Sequential(*tt.quantize.convert(model)[0])
    return model.eval().requires_grad_(True)


def fit(
    model: nn.Module, name: str, data: Batch, epochs: int, lr: float, *, relative: bool
) -> None:
    """Train a model for some passes by AdamW, one cycle of the learning rate."""
    card, size = tt.zoo.card(name), len(data.y)
    recipe = card.recipe
    decay = recipe["weight_decay"]
    groups = tt.param_groups(model, decay, lr=lr, decay_biases=True, relative=relative)
    optimizer = torch.optim.AdamW(groups, lr=lr)
    total = epochs * -(-size // recipe["batch_size"])
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total)
    model.train()
    done = 0
    for _ in range(epochs):
        for index in torch.randperm(size).split(recipe["batch_size"]):
            networks.sharpen(model, done / total)
            done += 1
            x, y, mask = part(data, index)
            readout = tt.unroll(model, x, from_rest=True)
            smoothing = recipe["label_smoothing"]
            loss = LOSSES[card.by](readout, y, mask=mask, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    networks.sharpen(model, 1.0)


def xylo_floats() -> nn.Sequential:
    """Return what becomes words-xylo: synapses, decays that are shifts, few connections."""
    beta = 1 - 2.0 ** -(2 + torch.arange(64) % 4)
    # connections that are always the same: 16 that are drawn, and 16 neighbours on a ring
    draw = torch.Generator().manual_seed(0)
    drawn = torch.rand(64, 64, generator=draw).argsort(1).argsort(1) < FAN_IN
    ring = (torch.arange(64) - 8 * torch.arange(8)[:, None]) % 64 < FAN_IN
    fixed = partial(snn.SLIF, alpha=0.5, learn_alpha=False, learn_beta=False)
    return nn.Sequential(
        *(nn.Linear(14, 64), fixed(64, beta=beta)),
        *(snn.connect(nn.Linear(64, 64), mask=drawn), fixed(64, beta=beta)),
        *(snn.connect(nn.Linear(64, 8), mask=ring), fixed(8, beta=1 - 2.0**-4)),
    )


def record(name: str) -> None:
    """Train from several seeds; the network of the recipe's becomes the file. Write the card."""
    old, load = tt.zoo.card(name), NETWORKS[name][1]
    trained = [train(name, old.recipe["seed"] + number) for number in range(SEEDS)]
    path = FOLDER / f"{name}.safetensors"
    with atomic_replace(path) as tensors, atomic_replace(path.with_suffix(".json")) as text:
        tt.save(trained[0], tensors)
        numbers = [measure(model, name) for model in trained]
        accuracies = [each["correct"] / each["samples"] for each in numbers]
        learned: list[Tensor] = [*trained[0].parameters()]
        values = learned or [*trained[0].buffers()]  # of a network of integers
        card = vars(old) | numbers[0]
        card |= {
            "parameters": sum(each.numel() for each in values),
            "accuracies": accuracies,
            "interval": interval(accuracies, numbers[0]["samples"]),
            "batch": BATCH,
            "num_bytes": tensors.stat().st_size,
            "file_hash": file_hash(tensors),
            "data_hash": data_hash(data_of(load)),
            "torch": torch.__version__,
            "tracetorch": tt.__version__,
            "date": date.today().isoformat(),
        }
        text.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def interval(accuracies: Sequence[float], samples: int) -> tuple[float, float]:
    """Return where 99 % of new trainings land: the formula of the module, for 2 to 10 seeds."""
    mean = statistics.mean(accuracies)
    of_seeds = statistics.variance(accuracies) * (1 + 1 / len(accuracies))
    of_tests = 2 * mean * (1 - mean) / samples
    half = math.sqrt(STUDENT[len(accuracies) - 2] ** 2 * of_seeds + NORMAL**2 * of_tests)
    return max(0.0, mean - half), min(1.0, mean + half)


def part(data: Batch, index: slice | Tensor) -> Batch:
    return Batch(data.x[:, index], data.y[index], data.mask[:, index])


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_hash(data: Data) -> str:
    """Return the SHA-256 of dtypes, shapes and values of training and test data."""
    found = hashlib.sha256()
    for tensor in (*data[0], *data[1]):
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
