"""Networks of the zoo: a builder for each, with its task and its recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tracetorch import integers, neurons, snn
from tracetorch.chips import xylo
from tracetorch.core.checks import suggestion
from tracetorch.functional import halflife_to_decay
from tracetorch.models import SEWResNet
from tracetorch.zoo.tasks import DIGITS, FEW_WORDS, ROWS, VOWELS, WORDS, Task


@dataclass(frozen=True)
class Recipe:
    """Settings of a training: AdamW, one cycle of the learning rate, cross entropy.

    Args:
        epochs: passes over the training data.
        batch_size: samples per step of the optimizer.
        lr: highest learning rate.
        calibrate: whether the weights are calibrated first, and each has a rate of its size
            (``tt.init.calibrate_``, ``tt.param_groups(..., relative=True)``).
        label_smoothing: of the cross entropy.
        weight_decay: of all but the parameters of neurons, of biases too.
        seed: of the weights, the order of the samples and the dropout.

    Example:
        >>> Recipe(epochs=5, batch_size=50, lr=1e-2).seed
        0
    """

    epochs: int
    batch_size: int
    lr: float
    calibrate: bool = True
    label_smoothing: float = 0.1
    weight_decay: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class IntegerRecipe(Recipe):
    """Settings of a training whose network becomes one of integers, for Xylo.

    Floats are trained first; then ``tt.quantize.prepare`` makes integers of them, through which
    they are trained on; ``tt.quantize.convert`` keeps the integers. ``epochs``, ``lr`` and
    ``calibrate`` are of the training in floats, all else of both.
    """

    integer_epochs: int = 10  # passes through the integers
    integer_lr: float = 8e-3  # highest learning rate in these


@dataclass(frozen=True)
class Network:
    """A network of the zoo."""

    task: Task  # what it is trained for
    build: Callable[[], nn.Module]  # returns it, initialised at random; of integers, not
    recipe: Recipe  # how it is trained
    floats: Callable[[], nn.Module] | None = None  # of integers: returns what becomes it

    @property
    def description(self) -> str:
        """Description of what the network is made of: the first line of its builder's docstring."""
        return (self.build.__doc__ or "").partition("\n")[0].rstrip(".")


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make tensors in float32 on the CPU, whatever the defaults of PyTorch are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


NETWORKS: dict[str, Network] = {}
_Builder = TypeVar("_Builder", bound=Callable[[], nn.Module])


def _entry(
    name: str, task: Task, recipe: Recipe, floats: Callable[[], nn.Module] | None = None
) -> Callable[[_Builder], _Builder]:
    """Enter what a function builds into the zoo."""

    def enter(build: _Builder) -> _Builder:
        NETWORKS[name] = Network(task, build, recipe, floats)
        return build

    return enter


def decays(width: int, longest: float) -> Tensor:
    """Return decays whose half-lives go from one step to ``longest``, evenly on a log scale."""
    return halflife_to_decay(torch.logspace(0, math.log2(longest), width, base=2))


def _two_layers(
    inputs: int, width: int, kind: Callable[..., nn.Module], linear: Callable[..., Any] = nn.Linear
) -> nn.Sequential:
    """Return two layers of neurons, with half-lives of up to 32 steps, and a readout of 10."""
    beta = decays(width, 32.0)
    return nn.Sequential(
        *(linear(inputs, width), kind(width, beta=beta), nn.Dropout(0.2)),
        *(linear(width, width), kind(width, beta=beta), nn.Dropout(0.2)),
        *(nn.Linear(width, 10), snn.Readout(10, beta=0.95)),
    )


@_entry("digits-lif", DIGITS, Recipe(8, 50, 1e-2))
def digits_lif() -> nn.Sequential:
    """64 LIF neurons behind a linear layer."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(28 * 28, 64), snn.LIF(64, beta=0.5), nn.Dropout(0.2)),
        *(nn.Linear(64, 10), snn.Readout(10, beta=0.5)),
    )


@_entry("digits-convolutions", DIGITS, Recipe(6, 50, 1e-2))
def digits_convolutions() -> nn.Sequential:
    """Two convolutions with LIF neurons."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snn.LIF(12, beta=0.5, dim=-3)),
        *(nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.LIF(32, beta=0.5, dim=-3)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 10), snn.Readout(10, beta=0.5)),
    )


@_entry("digits-sew-resnet", DIGITS, Recipe(3, 50, 8e-3, calibrate=False))
def digits_sew_resnet() -> SEWResNet:
    """SEW-ResNet-18 of width 6 with integrate-and-fire neurons."""
    return SEWResNet(18, 10, 1, width=6)


@_entry("rows-lif", ROWS, Recipe(5, 50, 1e-2))
def rows_lif() -> nn.Sequential:
    """Two layers of 128 LIF neurons, half-lives from one row to 32."""
    return _two_layers(28, 128, snn.LIF)


@_entry("rows-seadlif", ROWS, Recipe(5, 50, 1e-2))
def rows_seadlif() -> nn.Sequential:
    """Two layers of 128 adaptive neurons, SE-adLIF."""
    return _two_layers(28, 128, neurons.SEAdLIF)


@_entry("vowels-recurrent", VOWELS, Recipe(20, 30, 1e-2))
def vowels_recurrent() -> nn.Sequential:
    """32 LIF neurons that feed each other, all to all."""
    connection = nn.Linear(32, 32, bias=False)
    nn.init.orthogonal_(connection.weight, 0.2)  # weak beside the input
    return nn.Sequential(
        *(nn.Linear(12, 32), snn.Recurrent(snn.LIF(32, beta=decays(32, 16.0)), connection)),
        *(nn.Dropout(0.2), nn.Linear(32, 9), snn.Readout(9, beta=0.95)),
    )


@_entry("words-adlif", WORDS, Recipe(10, 50, 1e-2))
def words_adlif() -> nn.Sequential:
    """Two layers of 64 adaptive neurons, adLIF."""
    return _two_layers(40, 64, neurons.AdLIF)


@_entry("words-delays", WORDS, Recipe(12, 50, 1e-2))
def words_delays() -> nn.Sequential:
    """Two layers of 64 LIF neurons whose synapses have learned their delays, up to 20 steps."""
    return _two_layers(40, 64, snn.LIF, partial(snn.DelayedLinear, max_delay=20))


_FAN_IN = 16  # of a neuron on Xylo


def words_xylo_floats() -> nn.Sequential:
    """Return the floats behind them: synapses, decays that are shifts, and Xylo's fan-in."""
    beta = 1 - 2.0 ** -(2 + torch.arange(64) % 4)
    # connections that are always the same: 16 that are drawn, and 16 neighbours on a ring
    draw = torch.Generator().manual_seed(0)
    drawn = torch.rand(64, 64, generator=draw).argsort(1).argsort(1) < _FAN_IN
    ring = (torch.arange(64) - 8 * torch.arange(8)[:, None]) % 64 < _FAN_IN
    fixed = partial(snn.SLIF, alpha=0.5, learn_alpha=False, learn_beta=False)
    return nn.Sequential(
        *(nn.Linear(14, 64), fixed(64, beta=beta)),
        *(snn.connect(nn.Linear(64, 64), mask=drawn), fixed(64, beta=beta)),
        *(snn.connect(nn.Linear(64, 8), mask=ring), fixed(8, beta=1 - 2.0**-4)),
    )


@_entry("words-xylo", FEW_WORDS, IntegerRecipe(6, 50, 1e-2), words_xylo_floats)
def words_xylo() -> nn.Sequential:
    """Two layers of 64 neurons of Xylo in integers, which fit the chip."""
    return nn.Sequential(
        *(integers.Linear(14, 64, bias=False), _xylo_lif(64), xylo.StepDelay(64)),
        *(integers.Linear(64, 64, bias=False), _xylo_lif(64), xylo.StepDelay(64)),
        *(integers.Linear(64, 8, bias=False), _xylo_lif(8, xylo.XYLO_2.output_spikes)),
    )


def _xylo_lif(width: int, max_spikes: int = xylo.XYLO_2.hidden_spikes) -> xylo.LIF:
    """Return neurons of Xylo of which each has parameters of its own."""
    each = torch.ones(width)
    return xylo.LIF(
        width, dash_mem=each, dash_syn=each, pos_threshold=each, bias=each, max_spikes=max_spikes
    )


def network(name: str) -> Network:
    """Return the network of a name; raise ``ValueError`` where there is none."""
    if name not in NETWORKS:
        raise ValueError(
            f"there is no network {name!r} in the zoo.{suggestion(name, NETWORKS)} It has "
            f"{', '.join(NETWORKS)}."
        )
    return NETWORKS[name]
