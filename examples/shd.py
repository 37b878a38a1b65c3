"""Classify the Spiking Heidelberg Digits: spoken digits as spikes of a cochlea model.

Two recurrent layers of neurons with a synapse, and a readout whose mean over time is the logits.
The 700 channels are summed to 140, in 100 frames of 10 milliseconds. There are twenty classes; two
of the speakers in the test set are not in the training set. Put ``shd_train.h5`` and
``shd_test.h5`` into ``--data``, or pass ``--download``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from examples import common
from tracetorch import snn
from tracetorch.demo.options import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS, WINDOW, DURATION = 140, 10_000, 1_000_000  # channels; microseconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.shd --help``."""
    options = common.Options("examples.shd", __doc__ or "", epochs=30, lr=5e-3)
    options.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="of the files (%(default)s)"
    )
    options.add_argument("--download", action="store_true", help="fetch the files if missing")
    options.add_argument(
        "--width", type=count, default=128, metavar="N", help="neurons a layer (%(default)s)"
    )
    options.add_argument(
        "--feedforward", action="store_true", help="without connections inside a layer"
    )
    parsed = options.parse(arguments)
    name = f"SLIF {parsed.width}" + ("" if parsed.feedforward else ", recurrent")
    return common.run("shd", name, parsed, load, learn, draw)


def load(options: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """Load training and test data: spike counts ``[T=100, 140]``, and their digits."""
    from tqdm import tqdm

    parts = []
    for part in ("train", "test"):
        recordings = tt.data.SHD(options.data, part, download=options.download)
        frames = tt.data.Frames(recordings, window=WINDOW, start=0, stop=DURATION, flat=True)
        few = range(min(len(frames), 100) if options.quick else len(frames))
        # neighbouring channels are summed; a byte holds the count of a frame
        pooled = [
            frames[i][0].unflatten(1, (CHANNELS, -1)).sum(2).byte()
            for i in tqdm(few, part, leave=False, disable=None)
        ]
        parts.append(TensorDataset(torch.stack(pooled), recordings.labels[: len(few)]))
    return parts[0], parts[1]


class Network(snn.TTModule):
    """Network of two layers of SLIF neurons, with connections inside each, and a readout.

    Shape:
        Input ``[B, 140]``, one step; output ``[B, 20]``.
    """

    def __init__(self, width: int, feedforward: bool) -> None:
        super().__init__()
        # half-lives from one frame to 32
        beta = tt.functional.halflife_to_decay(torch.logspace(0, 5, width, base=2))

        def hidden(inputs: int) -> list[nn.Module]:
            neurons: snn.Neuron = snn.SLIF(width, alpha=0.7, beta=beta)
            if not feedforward:
                connection = nn.Linear(width, width, bias=False)
                # of equal gain in all directions, and weak beside the input
                nn.init.orthogonal_(connection.weight, 0.2)
                neurons = snn.Recurrent(neurons, connection)
            return [nn.Linear(inputs, width), neurons, nn.Dropout(0.3)]

        self.net = nn.Sequential(
            *hidden(CHANNELS), *hidden(width), nn.Linear(width, 20), snn.Readout(20, beta=0.95)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y: Tensor = self.net(x)
        return y


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Map counts ``[B, T, 140]`` to the mean of the readout over time, ``[B, 20]``."""
    tt.zero_states(model)
    return tt.decode.rate(tt.unroll(model, x.float().transpose(0, 1)))


def learn(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], seed: int
) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores."""
    from tqdm import tqdm

    learnt, held_out = data
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(learnt, 64, shuffle=True, generator=order)
    model = Network(options.width, options.feedforward)
    optimizer = torch.optim.AdamW(tt.param_groups(model, weight_decay=1e-2), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(loader)
    )
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    for number in range(options.epochs):
        for x, y in tqdm(loader, f"seed {seed}, pass {number + 1}", leave=False, disable=None):
            loss = smoothed(logits(model, shift_channels(x, order)), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model, {
        "accuracy": accuracy(model, held_out),
        "training accuracy": accuracy(model, learnt),
    }


def shift_channels(x: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Shift each recording ``[T, N]`` of a batch by up to ``most`` channels, like another pitch."""
    shift = torch.randint(-most, most + 1, (len(x), 1, 1), generator=generator)
    # channels shifted in from outside are empty, not wrapped around
    source = torch.arange(x.shape[2]) - shift
    inside = (source >= 0) & (source < x.shape[2])
    return x.gather(2, source.clamp(0, x.shape[2] - 1).expand_as(x)) * inside


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of recordings that are classified correctly."""
    model.eval()
    correct = 0
    for x, y in DataLoader(data, 256):
        correct += int((logits(model, x).argmax(1) == y).sum())
    model.train()
    return correct / len(data)


@torch.no_grad()
def draw(
    options: argparse.Namespace, data: tuple[TensorDataset, TensorDataset], model: nn.Module
) -> Figure:
    """Plot a held-out recording, and the readout over time."""
    from matplotlib.figure import Figure

    x, label = data[1][0]
    model.eval()
    tt.zero_states(model)
    readout = tt.unroll(model, x.float().unsqueeze(1))[:, 0]
    tt.zero_states(model)
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(x.T.numpy(), aspect="auto", cmap="gray_r", origin="lower")
    left.set(title=f"a held-out recording of class {int(label)}", xlabel="frame of 10 ms")
    left.set(ylabel="channel")
    right.plot(readout.numpy(), color="0.8")
    right.plot(readout[:, int(label)].numpy(), color="C3", label=f"class {int(label)}")
    right.set(title="the readout", xlabel="frame of 10 ms")
    right.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
