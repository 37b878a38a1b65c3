"""Classifiers of sequences: a spiking network of any layer or neuron, and baselines."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import tracetorch as tt
from examples import common
from tracetorch import snn
from tracetorch.demo.options import count, rate

SPIKING = ("LIF", "BLIF", "SLIF", "RLIF", "BSLIF", "BRLIF", "SRLIF", "BSRLIF")
READOUTS = ("Readout", "SReadout", "RReadout", "SRReadout")
Halflives: TypeAlias = Sequence[float] | None  # shortest and longest, in steps
Logits: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model, x and a mask
BASELINES = ("linear-of-mean", "mlp-of-mean", "mean-of-mlp", "gru")
NEURONS = (*SPIKING, *tt.neurons.__all__)
RATE = 2e-2  # the highest learning rate where none is given
# their response to a pulse does not end: calibrate_ cannot take its integral
WITHOUT_LEAK = ("TCLIF", "SigmaDelta")
# deviations in distances to the peak, which is five times as far as what makes these neurons spike
TARGETS = {"EIF": 0.1, "Izhikevich": 0.1}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network: ``--layer``, ``--neuron`` or ``--baseline``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", choices=SPIKING + READOUTS, help="the hidden neurons (LIF)")
    which.add_argument(
        "--neuron",
        choices=NEURONS,
        help="hidden neurons by the recipe for all of them: calibrated (but for "
        + " and ".join(WITHOUT_LEAK)
        + "), then trained at rates relative to their weights",
    )
    which.add_argument(
        "--baseline",
        choices=BASELINES,
        help="no memory: a linear model or an MLP of the mean over time, the mean over time of an "
        "MLP; with memory: a GRU",
    )
    parser.add_argument(
        "--recipe",
        action="store_true",
        help="with --neuron: batch norms, half-lives at their defaults, and tt.recipe as it is",
    )
    parser.add_argument(
        "--readout", choices=READOUTS, default="Readout", help="the last layer (Readout)"
    )
    parser.add_argument(
        "--recurrent", action="store_true", help="connect the hidden neurons of a layer, all to all"
    )
    add_delays(parser)
    parser.add_argument(
        "--halflives",
        type=rate,
        nargs=2,
        metavar="X",
        help="the shortest and the longest of the hidden membranes, in steps",
    )
    parser.add_argument("--width", type=count, metavar="N", help="hidden neurons per layer")
    parser.add_argument(
        "--smoothing", type=rate, default=0.0, metavar="X", help="of the labels (%(default)s)"
    )
    parser.add_argument(
        "--lr",
        type=rate,
        metavar="X",
        help=f"highest learning rate ({RATE:g}; with --recipe that of tt.recipe)",
    )
    parser.add_argument("--validation", action="store_true", help=common.VALIDATION)


def add_delays(parser: argparse.ArgumentParser) -> None:
    """Add ``--delays``."""
    parser.add_argument(
        "--delays",
        type=count,
        default=0,
        metavar="N",
        help="learn a delay of up to N steps for every synapse of the hidden layers",
    )


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error where a baseline is combined with what it does not have."""
    spiking = {
        "--readout": options.readout != "Readout",
        "--recurrent": options.recurrent,
        "--delays": options.delays > 0,
        "--halflives": options.halflives is not None,
    }
    given = [name for name, value in spiking.items() if value]
    if options.baseline and given:
        parser.error(f"--baseline {options.baseline} is no spiking network: leave out {given[0]}")
    if options.recipe and not options.neuron:
        parser.error("--recipe prepares the neurons of --neuron: give that too")


def configuration(options: argparse.Namespace) -> str:
    """Return the name of the run: ``LIF``, ``LIF+SReadout``, ``gru``."""
    # runs that choose a rate differ by it
    chosen = f", lr {options.lr:g}" if options.validation and options.lr else ""
    recipe = "tt.recipe" if options.recipe else "recipe"
    if options.baseline:
        smoothing = f", smoothing {options.smoothing:g}" if options.smoothing else ""
        return f"{options.baseline}{smoothing}{chosen}"
    return (
        (options.layer or (f"{options.neuron}, {recipe}" if options.neuron else "LIF"))
        + (f" {options.width}" if options.width else "")
        + (" recurrent" if options.recurrent else "")
        + (f" delays {options.delays}" if options.delays else "")
        + (" half-lives {:g} to {:g}".format(*options.halflives) if options.halflives else "")
        + ("" if options.readout == "Readout" else f"+{options.readout}")
        + chosen
    )


def build(
    options: argparse.Namespace,
    inputs: int,
    classes: int,
    width: int = 128,
    longest: float = 32.0,
) -> nn.Module:
    """Build the network that the options choose; ``--width`` goes before ``width``."""
    width = options.width or width
    if options.baseline:
        return baseline(options.baseline, inputs, classes, width)
    return Spiking(
        inputs,
        classes,
        options.layer or options.neuron or "LIF",
        options.readout,
        width=width,
        halflives=options.halflives or (None if options.recipe else (1.0, longest)),
        recurrent=options.recurrent,
        norm=options.recipe,
        delays=options.delays,
    )


def neurons(name: str, width: int, halflives: Halflives, dim: int = -1) -> snn.Neuron:
    """Build neurons of a name; their membranes' half-lives are spread evenly in logarithms.

    Everything else, and the membrane of a neuron that has no ``beta``, is at its default.
    """
    kind: Any = getattr(snn, name, None) or getattr(tt.neurons, name)
    settings: dict[str, Any] = {} if dim == -1 else {"dim": dim}
    if halflives and "beta" in inspect.signature(kind).parameters:
        first, last = torch.tensor(halflives).log2().tolist()
        spread = torch.logspace(first, last, width, base=2)
        settings["beta"] = tt.functional.halflife_to_decay(spread)
    made: snn.Neuron = kind(width, **settings)
    return made


def hidden(
    inputs: int,
    width: int,
    name: str,
    *,
    halflives: Halflives,
    dropout: float,
    recurrent: bool = False,
    norm: bool = False,
    delays: int = 0,
) -> list[nn.Module]:
    """Build a hidden layer: its linear layer, a batch norm where there is one, neurons, dropout."""
    linear: nn.Module = nn.Linear(inputs, width)
    if delays:
        linear = snn.DelayedLinear(inputs, width, max_delay=delays, sigma=delays / 2)
    layer: snn.SequenceLayer = neurons(name, width, halflives)
    if recurrent:
        connection = nn.Linear(width, width, bias=False)
        # of equal gain in all directions, and weak beside the input
        nn.init.orthogonal_(connection.weight, 0.2)
        layer = snn.Recurrent(layer, connection)
    norms = [nn.BatchNorm1d(width)] if norm else []
    # without a ReLU a network that does not spike would be linear
    relu = [nn.ReLU()] if name in READOUTS else []
    return [linear, *norms, layer, *relu, nn.Dropout(dropout)]


def calibrate(model: nn.Module, name: str, x: Tensor, mask: Tensor | None = None) -> None:
    """Scale the input of neurons to their own units, by a batch ``[T, B, ...]``."""
    if name not in WITHOUT_LEAK:
        tt.init.calibrate_(model, x, target=TARGETS.get(name, 0.5), mask=mask)


def quick_delays(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give delays, which are learned in whole steps, ten times the rate of neurons."""
    delays = {
        id(m.raw_delay): m.raw_delay for m in model.modules() if isinstance(m, snn.DelayedLinear)
    }
    if not delays:
        return groups
    *others, neurons = groups
    rest = [p for p in neurons["params"] if id(p) not in delays]
    quick = {**neurons, "params": [*delays.values()], "lr": 10 * neurons["lr"], "name": "delays"}
    return [*others, {**neurons, "params": rest}, quick]


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
        layer: name of the hidden layers.
        readout: name of the last layer.
        recurrent: whether the hidden neurons of a layer get each other's last output.
        norm: whether a batch norm stands before each layer of them.
        width: hidden neurons per layer.
        halflives: shortest and longest of the membranes, in steps; ``None``: their defaults.
        dropout: share of the hidden neurons' output left out in training.
        delays: longest delay of a hidden synapse, in steps; 0 for none.

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
        halflives: Halflives = (1.0, 32.0),
        dropout: float = 0.2,
        recurrent: bool = False,
        norm: bool = False,
        delays: int = 0,
    ) -> None:
        super().__init__()
        layers = [
            module
            for size in (inputs, width)
            for module in hidden(
                size,
                width,
                layer,
                halflives=halflives,
                dropout=dropout,
                recurrent=recurrent,
                norm=norm,
                delays=delays,
            )
        ]
        last: nn.Module = getattr(snn, readout)(classes, beta=0.95)
        self.net = nn.Sequential(*layers, nn.Linear(width, classes), last)

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
    if options.neuron:
        first, _, mask = next(iter(DataLoader(data, 200, collate_fn=tt.data.collate)))
    if options.recipe:
        optimizer, schedule = tt.recipe(model, first, total, lr=options.lr, mask=mask)
    else:
        if options.neuron:
            calibrate(model, options.neuron, first, mask)
        # param_groups exempts the parameters of neurons from weight decay; rates that are relative
        # to the weights are measured after calibration
        by_weights = options.neuron is not None
        highest = options.lr or RATE
        groups = tt.param_groups(model, 1e-2, decay_biases=True, lr=highest, relative=by_weights)
        groups = quick_delays(model, groups)
        optimizer = torch.optim.AdamW(groups)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total)
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
