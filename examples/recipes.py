"""Classify event recordings: SHD, SSC, N-MNIST and DVS Gesture, with the literature's settings.

The epoch is chosen on validation data, and the test part is measured once, at the end. Validation
data are the recordings of two of the ten training speakers (shd), of four of the 23 people
(dvs_gesture), every tenth recording (nmnist), or the data set's own part (ssc). Spoken digits and
words are 100 frames of 10 ms, the 700 channels summed to 140 by fives; two hidden layers follow
(Hammouamri et al., ICLR 2024). N-MNIST and DVS Gesture are 10 and 20 frames of equal time; blocks
of a convolution, neurons and a pooling follow, then a hidden layer (Fang et al., ICCV 2021). A
batch norm precedes the neurons of every layer, ``tt.recipe`` prepares the network on a batch, and
the logits are the mean of a readout over time. The files are read from --data, those of N-MNIST and
DVS Gesture by Tonic (``pip install tonic``); --download fetches missing ones.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common, networks
from examples.common import count
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Task:
    """Settings of a data set.

    Args:
        recordings: ``(folder, part, download=) -> recordings``, a data set.
        classes: number of its classes.
        shape: shape of the frames of a recording, ``[T, ...]``.
        frames: how events become frames: arguments of :class:`tracetorch.data.Frames`.
        epochs: passes over the training data.
        lr: highest learning rate.
        batch: recordings per step of the optimizer.
        width: neurons or channels per hidden layer.
        blocks: convolutions, each followed by a pooling; 0 for a network without.
        dense: neurons of the hidden layer behind the convolutions.
        groups: the person, or the like, of each recording; ``None`` where there is a part "valid".
        held_out: how many of the groups are for validation.
    """

    recordings: Callable[..., Any]
    classes: int
    shape: tuple[int, ...]
    frames: Mapping[str, Any]
    epochs: int
    lr: float
    batch: int
    width: int
    blocks: int = 0
    dense: int = 0
    groups: Callable[[Any], Sequence[Any]] | None = None
    held_out: int = 0


def from_tonic(name: str) -> Callable[..., Any]:
    """Return what reads a data set of Tonic's, which downloads whatever it does not find."""

    def read(folder: Path, part: str, *, download: bool) -> Any:
        from tonic import datasets

        if not download and not (folder / name).is_dir():
            raise FileNotFoundError(f"{name} is not in {folder}: Tonic fetches it with --download.")
        return getattr(datasets, name)(str(folder), train=part == "train")

    return read


COCHLEA = {"window": 10_000, "start": 0, "stop": 1_000_000, "flat": True}  # microseconds
TASKS = {
    "shd": Task(
        recordings=tt.data.SHD,
        classes=20,
        shape=(100, 140),
        frames=COCHLEA,
        epochs=150,
        lr=5e-3,
        batch=256,
        width=256,
        groups=lambda recordings: recordings.speakers.tolist(),
        held_out=2,
    ),
    "ssc": Task(
        recordings=tt.data.SSC,
        classes=35,
        shape=(100, 140),
        frames=COCHLEA,
        epochs=60,
        lr=5e-3,
        batch=256,
        width=512,
    ),
    "nmnist": Task(
        recordings=from_tonic("NMNIST"),
        classes=10,
        shape=(10, 2, 34, 34),
        frames={"bins": 10},
        epochs=30,
        lr=1e-3,
        batch=64,
        width=128,
        blocks=2,
        dense=2048,
        groups=lambda recordings: [number % 10 for number in range(len(recordings))],
        held_out=1,
    ),
    "dvs_gesture": Task(
        recordings=from_tonic("DVSGesture"),
        classes=11,
        shape=(20, 2, 128, 128),
        frames={"bins": 20},
        epochs=200,
        lr=1e-3,
        batch=16,
        width=128,
        blocks=5,
        dense=512,
        groups=lambda recordings: recordings.users,
        held_out=4,
    ),
}


class Data(NamedTuple):
    """Recordings as frames ``[T, ...]`` of counts in bytes, with their labels."""

    learnt: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.recipes shd --help``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # the defaults, and those that --help names, are of the task
    name = words[0] if words and words[0] in TASKS else "shd"
    task = TASKS[name]
    options = common.Options("examples.recipes", __doc__ or "", epochs=task.epochs, lr=task.lr)
    add = options.add_argument
    add("task", choices=TASKS, help=f"comes first; the defaults below are those of {name}")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="the files (%(default)s)")
    add("--download", action="store_true", help="fetch the files if missing")
    add("--neuron", choices=networks.NEURONS, default="LIF", help="hidden neurons (%(default)s)")
    add("--width", type=count, default=task.width, metavar="N", help="per layer (%(default)s)")
    add("--batch", type=count, default=task.batch, metavar="N", help="recordings (%(default)s)")
    add("--recurrent", action="store_true", help="connect neurons all to all; shd and ssc")
    networks.add_delays(options)
    add("--patience", type=count, metavar="N", help="stop after N passes that are not better")
    add("--device", default="cpu", help="where it runs, cuda for example (%(default)s)")
    parsed = options.parse(words)
    if parsed.task != name:
        options.error(f"argument task: {parsed.task} must be the first argument")
    if task.blocks and (parsed.recurrent or parsed.delays):
        options.error(f"--recurrent and --delays are for shd and ssc, not for {name}")
    return common.run(name, configuration(parsed), parsed, load, learn, draw)


def configuration(options: argparse.Namespace) -> str:
    """Return the name of the run: ``SEAdLIF 256 recurrent delays 25``."""
    return (
        f"{options.neuron} {options.width}"
        + (" recurrent" if options.recurrent else "")
        + (f" delays {options.delays}" if options.delays else "")
    )


def load(options: argparse.Namespace) -> Data:
    """Load the three sets; validation data are never a part of the test data."""
    task = TASKS[options.task]
    learnt, groups = load_part(options, "train")
    test, _ = load_part(options, "test")
    if task.groups is None:
        return Data(learnt, load_part(options, "valid")[0], test)
    last = sorted(set(groups))[-task.held_out :]
    held_out = torch.tensor([group in last for group in groups])
    if held_out.all():
        raise FileNotFoundError(
            f"recordings of more than {task.held_out} groups are needed, found only {last}."
        )
    rest, validation = (
        TensorDataset(*(tensor[which] for tensor in learnt.tensors))
        for which in (~held_out, held_out)
    )
    return Data(rest, validation, test)


def load_part(options: argparse.Namespace, part: str) -> tuple[TensorDataset, list[Any]]:
    """Load a part: frames and labels, and the group of each recording."""
    from tqdm import tqdm

    task = TASKS[options.task]
    recordings = task.recordings(options.data, part, download=options.download)
    number = len(recordings)
    kept = list(range(number))
    if options.quick:
        # spread over the file, whose neighbours are of one person
        kept = torch.linspace(0, number - 1, min(number, 60)).long().tolist()
    frames = tt.data.Frames(recordings, **task.frames)
    counts = torch.empty(len(kept), *task.shape, dtype=torch.uint8)
    for row, index in enumerate(tqdm(kept, part, leave=False, disable=None)):
        x = frames[index][0]
        if task.frames.get("flat"):
            x = x.unflatten(1, (task.shape[1], -1)).sum(2)  # neighbouring channels
        counts[row] = x.clamp(max=255)
    groups = task.groups(recordings) if task.groups else [None] * number
    labels = recordings.labels if hasattr(recordings, "labels") else recordings.targets
    return TensorDataset(counts, torch.as_tensor(labels)[kept]), [groups[each] for each in kept]


class Network(snn.TTModule):
    """Network of a task: hidden layers or convolutions of any neuron, and a readout.

    Shape:
        Input ``[B, ...]``, one frame; output ``[B, classes]``.
    """

    def __init__(self, options: argparse.Namespace, classes: int) -> None:
        super().__init__()
        task, width = TASKS[options.task], options.width
        layers: list[nn.Module] = []
        inputs = task.shape[1]
        for _ in range(task.blocks):
            neurons = networks.neurons(options.neuron, width, dim=-3)
            convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), neurons, nn.MaxPool2d(2)]
            inputs = width
        if task.blocks:
            layers += [nn.Flatten(), nn.Dropout(0.5)]
            # each pooling halves the side
            inputs = width * (task.shape[-1] >> task.blocks) ** 2
            width = min(task.dense, 16 * width)
        for _ in range(1 if task.blocks else 2):
            layers += networks.hidden(
                inputs,
                width,
                options.neuron,
                dropout=0.5 if task.blocks else 0.4,
                recurrent=options.recurrent,
                delays=options.delays,
            )
            inputs = width
        self.net = nn.Sequential(*layers, nn.Linear(inputs, classes), snn.Readout(classes, 0.95))

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y: Tensor = self.net(x)
        return y


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Map counts ``[B, T, ...]`` to the mean of the readout over time, ``[B, classes]``."""
    tt.zero_states(model)
    return tt.decode.rate(tt.unroll(model, x.float().transpose(0, 1)))


def learn(options: argparse.Namespace, data: Data, seed: int) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with the weights of the best epoch, and its scores."""
    from tqdm import tqdm

    device = torch.device(options.device)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data.learnt, options.batch, shuffle=True, generator=order)
    model = Network(options, TASKS[options.task].classes).to(device)
    few = data.learnt.tensors[0][: options.batch].to(device)
    total = options.epochs * len(loader)
    x = few.float().transpose(0, 1)
    optimizer, schedule = tt.recipe(model, x, total, lr=options.lr)
    best, best_epoch, kept = -1.0, 0, model
    for epoch in range(1, options.epochs + 1):
        for x, y in tqdm(loader, f"seed {seed}, pass {epoch}", leave=False, disable=None):
            networks.sharpen(model, schedule.last_epoch / total)
            loss = nn.functional.cross_entropy(logits(model, x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        # delays are measured as they will be used, in whole steps
        measured = copy.deepcopy(model)
        networks.sharpen(measured, 1.0)
        reached = accuracy(measured, data.validation, options)
        if reached > best:
            best, best_epoch, kept = reached, epoch, measured
        elif options.patience and epoch - best_epoch >= options.patience:
            break
    return kept, {
        "accuracy": accuracy(kept, data.test, options),
        "validation accuracy": best,
        "training accuracy": accuracy(kept, data.learnt, options),
        "epoch": best_epoch,
    }


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset, options: argparse.Namespace) -> float:
    """Return the share of recordings that are classified correctly."""
    model.eval()
    device = torch.device(options.device)
    correct = 0
    for x, y in DataLoader(data, options.batch):
        correct += int((logits(model, x.to(device)).argmax(1).cpu() == y).sum())
    model.train()
    return correct / len(data)


@torch.no_grad()
def draw(options: argparse.Namespace, data: Data, model: nn.Module) -> Figure:
    """Plot a recording of the test part, and the readout over time."""
    from matplotlib.figure import Figure

    x, label = data.test[0]
    model.eval()
    tt.zero_states(model)
    readout = tt.unroll(model, x.float().unsqueeze(1).to(options.device))[:, 0].cpu()
    tt.zero_states(model)
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if x.ndim == 2:
        left.imshow(x.T.numpy(), aspect="auto", cmap="gray_r", origin="lower")
        left.set(xlabel="frame", ylabel="channel")
    else:
        left.imshow(x.long().sum((0, 1)).numpy(), cmap="gray_r")
    left.set(title=f"a recording of class {int(label)}")
    right.plot(readout.numpy(), color="0.8")
    right.plot(readout[:, int(label)].numpy(), color="C3", label=f"class {int(label)}")
    right.set(title="the readout", xlabel="frame")
    right.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
