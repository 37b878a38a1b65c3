"""Classifiers of sequences: a spiking network of any layer, and baselines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import tracetorch as tt
from examples import common
from tracetorch import snn

SPIKING = ("LIF", "BLIF", "SLIF", "RLIF", "BSLIF", "BRLIF", "SRLIF", "BSRLIF")
READOUTS = ("Readout", "SReadout", "RReadout", "SRReadout")
Logits: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model, x and a mask
BASELINES = ("linear-of-mean", "mlp-of-mean", "mean-of-mlp", "gru")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network: ``--layer`` and ``--readout``, or ``--baseline``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", choices=SPIKING + READOUTS, help="the hidden neurons (LIF)")
    which.add_argument(
        "--baseline",
        choices=BASELINES,
        help="no memory: a linear model or an MLP of the mean over time, the mean over time of an "
        "MLP; with memory: a GRU",
    )
    parser.add_argument(
        "--readout", choices=READOUTS, default="Readout", help="the last layer (Readout)"
    )
    parser.add_argument(
        "--recurrent", action="store_true", help="connect the hidden neurons of a layer, all to all"
    )
    parser.add_argument("--validation", action="store_true", help=common.VALIDATION)


def configuration(options: argparse.Namespace) -> str:
    """Return the name of the run: ``LIF``, ``LIF+SReadout``, ``gru``."""
    if options.baseline:
        return str(options.baseline)
    return (
        (options.layer or "LIF")
        + (" recurrent" if options.recurrent else "")
        + ("" if options.readout == "Readout" else f"+{options.readout}")
    )


def build(
    options: argparse.Namespace,
    inputs: int,
    classes: int,
    width: int = 128,
    longest: float = 32.0,
) -> nn.Module:
    """Build the network that the options choose."""
    if options.baseline:
        return baseline(options.baseline, inputs, classes, width)
    return Spiking(
        inputs,
        classes,
        options.layer or "LIF",
        options.readout,
        width=width,
        longest=longest,
        recurrent=options.recurrent,
    )


class Spiking(snn.TTModule):
    """Spiking network: two hidden layers of any neuron, and a readout.

    The neurons' half-lives are spread from one step to ``longest``, evenly on a logarithmic scale.
    A layer that does not spike is followed by a ReLU, for without one the network would be linear.

    Args:
        inputs: features per step.
        classes: logits per step.
        layer: name of the hidden layers.
        readout: name of the last layer.
        recurrent: whether the hidden neurons of a layer get each other's last output.
        width: hidden neurons per layer.
        longest: longest half-life, in steps.
        dropout: share of the hidden neurons' output left out in training.

    Shape:
        Input ``[B, inputs]``, one step; output ``[B, classes]``.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        layer: str = "LIF",
        readout: str = "Readout",
        width: int = 128,
        longest: float = 32.0,
        dropout: float = 0.2,
        recurrent: bool = False,
    ) -> None:
        super().__init__()

        def hidden(inputs: int) -> list[nn.Module]:
            halflives = torch.logspace(0, torch.tensor(longest).log2().item(), width, base=2)
            beta = tt.functional.halflife_to_decay(halflives)
            neurons: snn.Neuron = getattr(snn, layer)(width, beta=beta)
            if recurrent:
                connection = nn.Linear(width, width, bias=False)
                # of equal gain in all directions, and weak beside the input
                nn.init.orthogonal_(connection.weight, 0.2)
                neurons = snn.Recurrent(neurons, connection)
            relu = [] if layer in SPIKING else [nn.ReLU()]
            return [nn.Linear(inputs, width), neurons, *relu, nn.Dropout(dropout)]

        last: nn.Module = getattr(snn, readout)(classes, beta=0.95)
        self.net = nn.Sequential(*hidden(inputs), *hidden(width), nn.Linear(width, classes), last)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y: Tensor = self.net(x)
        return y


class MeanInput(nn.Module):
    """Network of the mean input over time: it ignores the order of the steps.

    Shape:
        Input ``[T, B, inputs]`` and mask ``[T, B]``; output ``[B, classes]``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector of logits per sequence."""
        y: Tensor = self.network(tt.decode.rate(x, mask=mask))
        return y


class MeanOutput(nn.Module):
    """Mean over time of a network of single steps: it ignores their order, but is not linear.

    Shape:
        As :class:`MeanInput`.
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector of logits per sequence."""
        y: Tensor = self.head(tt.decode.rate(self.network(x), mask=mask))
        return y


class GRU(nn.Module):
    """GRU read at the last real step: a common network with memory, for comparison.

    Shape:
        As :class:`MeanInput`.
    """

    def __init__(self, inputs: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector of logits per sequence."""
        # padding follows the real steps, so the last of them is not the last of the batch
        last = mask.sum(0) - 1
        states, _ = self.gru(x)
        y: Tensor = self.head(states[last, torch.arange(len(last))])
        return y


def baseline(
    name: str, inputs: int, classes: int, width: int = 128, dropout: float = 0.2
) -> nn.Module:
    """Build a network of :data:`BASELINES`."""
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
    deeper = [nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)]
    head = nn.Linear(width, classes)
    if name == "linear-of-mean":
        return MeanInput(nn.Linear(inputs, classes))
    if name == "mlp-of-mean":
        return MeanInput(nn.Sequential(*hidden, *deeper, head))
    if name == "mean-of-mlp":
        return MeanOutput(nn.Sequential(*hidden, *deeper), head)
    return GRU(inputs, classes, width, dropout)


@torch.no_grad()
def firing_rate(model: nn.Module, x: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure spikes per hidden neuron and real step; return nothing without spiking layers."""
    layers = [name for name, m in model.named_modules() if type(m).__name__ in SPIKING]
    if not layers:
        return {}
    model.eval()  # dropout would lower the rates
    tt.zero_states(model)
    _, seen = tt.unroll(model, x, record=[f"{name}.output" for name in layers])
    tt.zero_states(model)
    rates = [tt.metrics.firing_rate(spikes, mask=mask).item() for spikes in seen.values()]
    return {"firing rate": sum(rates) / len(rates)}


def learn(
    options: argparse.Namespace,
    model: nn.Module,
    logits: Logits,
    data: Dataset[Any],
    batch: int,
    seed: int,
) -> None:
    """Train ``model`` to classify the sequences of ``data``."""
    from tqdm import tqdm

    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch, shuffle=True, generator=order, collate_fn=tt.data.collate)
    # param_groups exempts the parameters of neurons from weight decay
    optimizer = torch.optim.AdamW(tt.param_groups(model, weight_decay=1e-2), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(loader)
    )
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        for x, y, mask in loader:
            loss = cross_entropy(logits(model, x, mask), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def scores(
    model: nn.Module, logits: Logits, data: tuple[Dataset[Any], Dataset[Any]], batch: int
) -> common.Scores:
    """Measure accuracy on test and training data, and the firing rate."""
    learnt, test = data
    x, _, mask = next(iter(DataLoader(test, 250, collate_fn=tt.data.collate)))
    return {
        "accuracy": accuracy(model, logits, test, batch),
        "training accuracy": accuracy(model, logits, learnt, batch),
        **firing_rate(model, x, mask),
    }


@torch.no_grad()
def accuracy(model: nn.Module, logits: Logits, data: Dataset[Any], batch: int) -> float:
    """Return the share of sequences that are classified correctly."""
    model.eval()
    correct = total = 0
    for x, y, mask in DataLoader(data, batch, collate_fn=tt.data.collate):
        correct += int((logits(model, x, mask).argmax(1) == y).sum())
        total += len(y)
    return correct / total
