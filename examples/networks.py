"""Classifiers of sequences: a spiking network of any layer or neuron, and baselines."""

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
from examples.common import count, rate
from tracetorch import snn

SPIKING = ("LIF", "BLIF", "SLIF", "RLIF", "BSLIF", "BRLIF", "SRLIF", "BSRLIF")
READOUTS = ("Readout", "SReadout", "RReadout", "SRReadout")
Logits: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model, x and a mask
BASELINES = ("linear-of-mean", "mlp-of-mean", "mean-of-mlp", "gru")
NEURONS = (*SPIKING, *tt.neurons.__all__)
RATE = 2e-2  # the highest learning rate of a baseline where none is given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network: ``--neuron`` or ``--baseline``, and more."""
    which, add = parser.add_mutually_exclusive_group(), parser.add_argument
    which.add_argument(
        "--neuron",
        choices=NEURONS + READOUTS,
        default="LIF",
        help="of the hidden layers (%(default)s); a ReLU follows those that do not spike",
    )
    which.add_argument(
        "--baseline",
        choices=BASELINES,
        help="no memory: a linear model or an MLP of the mean over time, the mean over time of an "
        "MLP; with memory: a GRU",
    )
    add("--readout", choices=READOUTS, default="Readout", help="the last layer (%(default)s)")
    recurrent = "connect the hidden neurons of a layer, all to all"
    add("--recurrent", action="store_true", help=recurrent)
    add_delays(parser)
    add("--width", type=count, metavar="N", help="hidden neurons per layer")
    smoothing = "of the labels (%(default)s)"
    add("--smoothing", type=rate, default=0.0, metavar="X", help=smoothing)
    highest = f"highest learning rate (that of tt.recipe; of a baseline {RATE:g})"
    add("--lr", type=rate, metavar="X", help=highest)
    add("--validation", action="store_true", help=common.VALIDATION)


def add_delays(parser: argparse.ArgumentParser) -> None:
    """Add ``--delays``."""
    delays = "learn a delay of up to N steps for every synapse of the hidden layers"
    parser.add_argument("--delays", type=count, default=0, metavar="N", help=delays)


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error where a baseline is combined with what it does not have."""
    for name in ("readout", "recurrent", "delays") if options.baseline else ():
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--baseline {options.baseline} is no spiking network: leave out --{name}")


def configuration(options: argparse.Namespace) -> str:
    """Return the name of the run: ``LIF``, ``LIF+SReadout``, ``gru``."""
    name: str = options.baseline or (
        options.neuron
        + (f" {options.width}" if options.width else "")
        + (" recurrent" if options.recurrent else "")
        + (f" delays {options.delays}" if options.delays else "")
        + ("" if options.readout == "Readout" else f"+{options.readout}")
    )
    # runs that choose a rate differ by it
    chosen = f", lr {options.lr:g}" if options.validation and options.lr else ""
    return name + chosen


def build(options: argparse.Namespace, inputs: int, classes: int, width: int = 128) -> nn.Module:
    """Build the network that the options choose; ``--width`` goes before ``width``."""
    width = options.width or width
    if options.baseline:
        return baseline(options.baseline, inputs, classes, width)
    return Spiking(
        inputs,
        classes,
        options.neuron,
        options.readout,
        width=width,
        recurrent=options.recurrent,
        delays=options.delays,
    )


def neurons(name: str, width: int, dim: int = -1) -> snn.Neuron:
    """Build neurons of a name, for :func:`tracetorch.recipe` to spread their half-lives."""
    kind: Any = getattr(snn, name, None) or getattr(tt.neurons, name)
    settings: dict[str, Any] = {} if dim == -1 else {"dim": dim}
    if name in READOUTS:  # the recipe leaves what does not spike
        halflives = torch.logspace(0, 5, width, base=2)
        settings["beta"] = tt.functional.halflife_to_decay(halflives)
    made: snn.Neuron = kind(width, **settings)
    return made


def hidden(
    inputs: int,
    width: int,
    name: str,
    *,
    dropout: float = 0.2,
    recurrent: bool = False,
    norm: bool = True,
    delays: int = 0,
) -> list[nn.Module]:
    """Build a hidden layer: a linear layer, a batch norm, neurons, dropout.

    Args:
        inputs: features per step.
        width: how many neurons.
        name: of the neurons.
        dropout: share of their output left out in training.
        recurrent: whether they get each other's last output.
        norm: whether there is a batch norm.
        delays: longest delay of a synapse, in steps; 0 for none.
    """
    linear: nn.Module = nn.Linear(inputs, width)
    if delays:
        linear = snn.DelayedLinear(inputs, width, max_delay=delays, sigma=delays / 2)
    layer: snn.SequenceLayer = neurons(name, width)
    if recurrent:
        connection = nn.Linear(width, width, bias=False)
        # of equal gain in all directions, and weak beside the input
        nn.init.orthogonal_(connection.weight, 0.2)
        layer = snn.Recurrent(layer, connection)
    norms = [nn.BatchNorm1d(width)] if norm else []
    # without a ReLU a network that does not spike would be linear
    relu = [nn.ReLU()] if name in READOUTS else []
    return [linear, *norms, layer, *relu, nn.Dropout(dropout)]


def sharpen(model: nn.Module, progress: float) -> None:
    """Make the interpolation of delays narrower; after training make them whole steps.

    Its width falls from half the longest delay to 0.5 in the first half of the training.

    Args:
        model: the network.
        progress: share of the training that is over; 1 at its end.
    """
    for layer in model.modules():
        if isinstance(layer, snn.DelayedLinear):
            widest = layer.max_delay / 2
            layer.sigma = max(0.5, widest * (0.5 / widest) ** min(1.0, 2 * progress))
            if progress >= 1:
                layer.round_()


class Spiking(snn.TTModule):
    """Spiking network: two hidden layers of any neuron, and a readout.

    Args:
        inputs: features per step.
        classes: logits per step.
        neuron: name of the hidden neurons.
        readout: name of the last layer.
        width: hidden neurons per layer.
        settings: of both layers, for :func:`hidden`.

    Shape:
        Input ``[B, inputs]``, one step; output ``[B, classes]``.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        neuron: str = "LIF",
        readout: str = "Readout",
        *,
        width: int = 128,
        **settings: Any,
    ) -> None:
        super().__init__()
        layers = [
            module for size in (inputs, width) for module in hidden(size, width, neuron, **settings)
        ]
        last: nn.Module = getattr(snn, readout)(classes, beta=0.95)
        self.net = nn.Sequential(*layers, nn.Linear(width, classes), last)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y: Tensor = self.net(x)
        return y


class MeanOutput(nn.Module):
    """Mean over time of a network of single steps, and a head: it ignores the order of the steps.

    Shape:
        Input ``[T, B, inputs]`` and mask ``[T, B]``; output ``[B, classes]``.
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
    """GRU, read at the last real step or by the mean over all: a common network with memory.

    Shape:
        As :class:`MeanOutput`.
    """

    def __init__(
        self, inputs: int, classes: int, width: int, dropout: float, *, mean: bool = False
    ) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))
        self.read = tt.decode.rate if mean else tt.decode.last

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector of logits per sequence."""
        states, _ = self.gru(x)
        y: Tensor = self.head(self.read(states, mask=mask))
        return y


def baseline(
    name: str, inputs: int, classes: int, width: int = 128, dropout: float = 0.2
) -> nn.Module:
    """Build a network of :data:`BASELINES`."""
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
    deeper = [nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)]
    head = nn.Linear(width, classes)
    if name == "linear-of-mean":
        return MeanOutput(nn.Identity(), nn.Linear(inputs, classes))
    if name == "mlp-of-mean":
        return MeanOutput(nn.Identity(), nn.Sequential(*hidden, *deeper, head))
    if name == "mean-of-mlp":
        return MeanOutput(nn.Sequential(*hidden, *deeper), head)
    return GRU(inputs, classes, width, dropout)


@torch.no_grad()
def firing_rate(model: nn.Module, x: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure spikes per hidden neuron and real step; return nothing without spiking layers."""
    layers = [name for name, m in model.named_modules() if type(m).__name__ in NEURONS]
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
    total = options.epochs * len(loader)
    optimizer: torch.optim.Optimizer
    if isinstance(model, Spiking):
        first, _, mask = next(iter(DataLoader(data, 200, collate_fn=tt.data.collate)))
        optimizer, schedule = tt.recipe(model, first, total, lr=options.lr, mask=mask)
    else:
        highest = options.lr or RATE
        optimizer = torch.optim.AdamW(model.parameters(), highest)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total)
    done = 0
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        for x, y, mask in loader:
            sharpen(model, done / total)
            done += 1
            loss = cross_entropy(logits(model, x, mask), y, label_smoothing=options.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    sharpen(model, 1.0)


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
