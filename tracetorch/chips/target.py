"""``Target``: what a network is quantised for, and the chips that are known.

A chip is one file of this folder: its limits (:class:`Chip`), its neurons as integer steps, a
``ChipTarget`` that says how a stage of a network becomes them and how a network is exported, and
``register``, which makes ``tt.quantize`` know it. ``xylo`` is one to copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tracetorch.cell import Constraint
from tracetorch.chips.limits import Chip, exceeded
from tracetorch.integers.arithmetic import check_between, limits, straight_through
from tracetorch.integers.layers import Add, Quantize
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import softplus, unbounded

FloatProduct = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass
class Stage:
    """A product, modules without weights, and neurons of a float network."""

    path: str  # of the product in the user's model
    product: FloatProduct  # a copy, batch norm folded; that inside of delays, where there are some
    # modules between the product and its neurons, with their paths
    between: list[tuple[str, nn.Module]] = field(default_factory=list)
    neuron_path: str = ""  # of the neurons, or of the Recurrent that holds them
    neuron: LeakyIntegrator | None = None  # a copy; None where the model ends with the product
    connection: FloatProduct | None = None  # of a Recurrent, a copy
    # the layer that delays the product's inputs, synapse by synapse
    delays: DelayedLinear | None = None
    connection_delays: DelayedLinear | None = None  # that of the connection's
    # whether each neuron has an output of the product, and of the connection, for itself: their
    # dimensions are the same
    aligned: bool = True
    last: bool = False  # whether the network's outputs are those of this stage

    @property
    def layer(self) -> LeakyIntegrator:
        return cast(LeakyIntegrator, self.neuron)

    @property
    def spikes(self) -> bool:
        """Whether the neurons have a threshold."""
        neuron = self.neuron
        return neuron is not None and not (neuron.pos_threshold is neuron.neg_threshold is None)

    @property
    def settings(self) -> dict[str, Any]:
        return self.layer.step_kwargs(1, torch.float32)


class LearnedIntegers(nn.Module):
    """Parametrization of a tensor of integers by the floats of the model that was prepared.

    ::

        y = step * clamp(round((constraint(raw) * factor + offset) / step), low, high)

    The gradient passes as if nothing were rounded or clamped, so that what has left the range can
    come back.

    Args:
        constraint: that the float layer has for the parameter.
        factor: integers in one unit of its value; a number, or shaped to broadcast.
        low, high: the least and the largest multiple of ``step``.
        step: of which every integer is a multiple.
    """

    factor: Tensor
    step: Tensor

    def __init__(
        self,
        constraint: Constraint,
        factor: Tensor | float,
        low: float,
        high: float,
        step: float = 1.0,
    ) -> None:
        super().__init__()
        self.constraint = constraint
        self.register_buffer("factor", torch.as_tensor(factor, dtype=torch.get_default_dtype()))
        self.register_buffer("step", torch.tensor(step, dtype=torch.get_default_dtype()))
        self.low, self.high = low, high

    def forward(self, raw: Tensor) -> Tensor:
        value = self.constraint(raw) * self.factor
        steps = torch.round(value.detach() / self.step).clamp(self.low, self.high)
        return straight_through(value, steps * self.step)

    def clipped(self, raw: Tensor) -> float:
        """Return the share of the values that are beyond an end of the range."""
        steps = (self.constraint(raw.detach()) * self.factor / self.step).round()
        return float(((steps < self.low) | (steps > self.high)).double().mean())

    def extra_repr(self) -> str:
        return f"{self.constraint.name}, {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class IntegerNeuron:
    kind: Callable[..., Neuron]  # called with the parameters by name
    constants: Mapping[str, Any]  # parameters that do not learn
    # the floats of the model that others follow from, and how
    learned: Mapping[str, tuple[Tensor, LearnedIntegers]]
    output_scale: Tensor  # what one integer of the output stands for
    output_largest: int  # the largest integer of the output


@dataclass(frozen=True)
class Target:
    """Base of targets, a processor or a chip: widths, neurons and limits."""

    chip: Chip | None  # its limits; None for a processor
    weight_bits: int  # width of weights
    state_bits: int = 16  # width of what arrives at neurons, and of thresholds

    # the largest shift of a product, and the bits that its sums may take
    most_shift: ClassVar[int] = 15
    sum_bits: ClassVar[int] = 22
    # whether every neuron may have a threshold of its own
    per_channel: ClassVar[bool] = True
    # whether products have a bias; otherwise neurons have it
    bias_in_product: ClassVar[bool] = True
    # whether all weights between hidden neurons share a shift
    one_inner_shift: ClassVar[bool] = False
    # the layers of neurons that a network has at least
    least_layers: ClassVar[int] = 1

    @property
    def limit(self) -> int:
        """The largest integer of ``state_bits``."""
        return limits(self.state_bits)[1]

    @property
    def state_width(self) -> int:
        return self.state_bits

    def refuse(self, stage: Stage) -> tuple[str, str] | None:
        """Return a path and what is allowed there, where a stage has no form here."""
        raise NotImplementedError

    def refuse_module(self, kind: type[nn.Module]) -> str | None:
        """Return why a class of modules without weights has no form here; ``None`` if it has."""
        return None

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the target's neurons differ from those of a stage."""
        return []

    def border(self, x: Tensor) -> tuple[nn.Module | None, int]:
        """Return what makes integers of inputs like ``x``, and the largest of them."""
        raise NotImplementedError

    def gain(self, stage: Stage) -> Tensor:
        """Return by what weights are multiplied, so that the target's neurons reach as far."""
        return torch.ones(())

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose states count in ``unit``."""
        raise NotImplementedError

    def spike_delay(self, num_neurons: int) -> nn.Module | None:
        """Return what delays spikes by a step on their way to the next neurons, if a chip does."""
        return None

    def departures(self, model: nn.Sequential, x: Tensor) -> list[str]:
        """Return in what the chip departs from an integer model on a sample."""
        return []

    def misfits(self, model: nn.Module, x: Tensor, labels: Mapping[str, str]) -> list[str]:
        """Return which limits of the chip an integer model exceeds."""
        return []


@dataclass(frozen=True)
class ChipTarget(Target):
    """Base of chips: spikes in and out, decays that do not learn, and limits."""

    chip: Chip

    bias_in_product: ClassVar[bool] = False
    # why a layer with a delay for each synapse has no form, as what is allowed
    without_delays: ClassVar[str]
    # classes of neurons that are none of the chip's own, but hand on spikes
    passing: ClassVar[tuple[type[nn.Module], ...]] = ()

    def refuse(self, stage: Stage) -> tuple[str, str] | None:
        path, name, product = stage.neuron_path or stage.path, self.chip.name, stage.path
        if not stage.spikes:
            return path, f"neurons that spike: {name} returns spikes. End with snn.LIF or snn.SLIF"
        layer, connection = stage.layer, f"{path}.connection"
        if layer.neg_threshold is not None or layer.pos_scale is not None:
            return path, f"spikes of one sign and size on {name}: snn.LIF or snn.SLIF"
        if layer.gamma is not None:
            return path, f"no recurrent trace on {name}. Use snn.Recurrent with a Linear"
        if stage.connection is not None and stage.connection.bias is not None:
            return connection, f"no bias in the connection of a Recurrent on {name} (bias=False)"
        biased = [
            where
            for where, bias in ((product, stage.product.bias), (path, layer.bias))
            if bias is not None
        ]
        if biased and not self.chip.has_bias:
            return biased[0], f"no bias on {name} (bias=False, and no batch norm)"
        if len(biased) > 1:
            return product, f"one bias for a neuron on {name}: leave out this one (bias=False)"
        if stage.delays is not None or stage.connection_delays is not None:
            return product if stage.delays is not None else connection, self.without_delays
        return None

    def refuse_module(self, kind: type[nn.Module]) -> str | None:
        return f"no branches that are added on {self.chip.name}" if kind is Add else None

    def border(self, x: Tensor) -> tuple[nn.Module | None, int]:
        """Return what saturates inputs like ``x`` at what the chip takes, and the largest."""
        most = self.chip.input_spikes
        if float(x.min()) < 0 or (most == 1 and not bool(((x == 0) | (x == 1)).all())):
            raise ValueError(
                f"the sample has inputs that are no spikes, {float(x.min()):g} to "
                f"{float(x.max()):g}, and {self.chip.name} takes 0 to {most} of a channel in a "
                "step. Encode them, by tt.encode.rate or tt.encode.population say."
            )
        if torch.equal(x, x.round()) and float(x.max()) <= most:
            return nn.Hardtanh(0.0, float(most)), max(int(x.max()), 1)
        return whole_border(x, (most + 1).bit_length() - 1, signed=False)

    def misfits(self, model: nn.Module, x: Tensor, labels: Mapping[str, str]) -> list[str]:
        return exceeded(self.chip, model, x[0, :1], labels, self.passing)

    def learned(
        self, stage: Stage, unit: Tensor, at_membrane: Tensor, bias: dict[str, Any], most: int
    ) -> dict[str, tuple[Tensor, LearnedIntegers]]:
        """Return the threshold, in ``unit``, and a neuron's one bias, its product's or its own."""
        layer, product = stage.layer, stage.product
        threshold = LearnedIntegers(softplus, 1 / unit, 1, most)
        found = {"pos_threshold": (layer.raw_pos_threshold, threshold)}
        if product.bias is not None:
            through_synapse = gathered(stage)[0] * at_membrane
            form = LearnedIntegers(unbounded, through_synapse, **bias)
            found["bias"] = product.bias, form
        elif layer.bias is not None:
            found["bias"] = layer.raw_bias, LearnedIntegers(unbounded, at_membrane, **bias)
        return found


def gathered(stage: Stage) -> tuple[Tensor, Tensor]:
    """Return what a constant input of 1 makes of synapse and membrane, each of its own."""
    layer, settings = stage.layer, stage.settings
    one = torch.ones(())
    synapse = membrane = one
    if layer.alpha is not None and not settings["alpha_ema"]:
        synapse = 1 / (1 - layer.alpha.detach())
    if not settings["beta_ema"]:
        membrane = 1 / (1 - layer.beta.detach())
    return synapse, membrane


def whole_border(x: Tensor, bits: int, *, signed: bool) -> tuple[Quantize | None, int]:
    """Return the border that a width allows: none, where inputs are such integers already."""
    low, high = limits(bits, signed=signed)
    largest = float(x.abs().max())
    if torch.equal(x, x.round()) and low <= float(x.min()) and float(x.max()) <= high:
        return None, max(int(largest), 1)
    return Quantize(largest / high, bits, signed), high


_TARGETS: dict[Chip, type[ChipTarget]] = {}


def register(chip: Chip, target: type[ChipTarget]) -> None:
    """Make ``tt.quantize`` know a chip."""
    _TARGETS[chip] = target


def target_of(chip: object, weight_bits: int) -> ChipTarget:
    if not isinstance(chip, Chip):
        raise TypeError(f"chip must be a tt.chips.Chip or None, got {chip!r}.")
    if chip not in _TARGETS:
        known = ", ".join(each.name for each in _TARGETS)
        raise ValueError(f"chip must be one that tt.chips has, {known}, got {chip.name}.")
    return _TARGETS[chip](chip, check_between("weight_bits", weight_bits, 2, chip.weight_bits))
