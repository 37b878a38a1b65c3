"""``Target``: widths and neurons for which a network is quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.chips.chip import Chip
from tracetorch.integers.border import Quantize
from tracetorch.integers.products import Product
from tracetorch.integers.width import limits
from tracetorch.quantize.learned import LearnedIntegers
from tracetorch.quantize.stages import Stage
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron


@dataclass(frozen=True)
class Learned:
    """A parameter of integers, and the float that it follows from.

    Args:
        raw: of the float model.
        form: how the integers follow.
        source: path of the float in its stage: ``"neuron.raw_beta"``, ``"product.bias"``.
    """

    raw: Tensor
    form: LearnedIntegers
    source: str


@dataclass(frozen=True)
class IntegerNeuron:
    """Recipe of the neurons of a stage.

    Args:
        kind: called with the parameters by name.
        constants: parameters that do not learn.
        learned: those that follow from floats.
        output_scale: what one integer of the output stands for.
        output_largest: the largest integer of the output.
    """

    kind: Callable[..., Neuron]
    constants: Mapping[str, Any]
    learned: Mapping[str, Learned]
    output_scale: Tensor
    output_largest: int


@dataclass(frozen=True)
class Target:
    """Base of targets, a processor or a chip: widths, neurons and limits.

    Args:
        chip: its limits; ``None`` for a processor.
        weight_bits: width of weights.
        state_bits: width of states.
        most_shift: largest shift of a product.
        per_channel: whether every neuron may have a threshold of its own.
        bias_in_product: whether products have a bias; otherwise neurons have it.
        spikes_later: whether spikes arrive one step later at the next neurons.
        one_inner_shift: whether all weights between hidden neurons share a shift.
    """

    # why a layer with a delay for each synapse has no form, as what is allowed; None if it has one
    without_delays: ClassVar[str | None] = None

    chip: Chip | None
    weight_bits: int
    state_bits: int
    most_shift: int = 15
    per_channel: bool = True
    bias_in_product: bool = True
    spikes_later: bool = False
    one_inner_shift: bool = False
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", limits(self.state_bits)[1])

    @property
    def state_width(self) -> int:
        """Width of the states of the target's neurons."""
        return self.state_bits

    @property
    def state_limit(self) -> int:
        """The largest integer of a state."""
        return limits(self.state_width)[1]

    def refuse(self, stage: Stage, *, last: bool) -> str | None:
        """Return why a stage has no form here, as what is allowed; ``None`` where it has one."""
        raise NotImplementedError

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the target's neurons differ from those of a stage."""
        return []

    def border(self, x: Tensor) -> tuple[Quantize | None, int]:
        """Return what makes integers of inputs like ``x``, and the largest of them."""
        raise NotImplementedError

    def gain(self, layer: LeakyIntegrator) -> Tensor:
        """Return by what weights are multiplied, so that the target's neurons reach as far."""
        return torch.ones(())

    def neuron(self, stage: Stage, unit: Tensor, *, last: bool) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose states count in ``unit``."""
        raise NotImplementedError

    def departures(self, model: nn.Sequential, x: Tensor) -> list[str]:
        """Return in what the chip departs from an integer model on a sample."""
        return []

    def misfits(
        self, products: list[tuple[str, Product]], neurons: list[tuple[str, Neuron]]
    ) -> list[str]:
        """Return which limits of the chip a network exceeds."""
        return []


def whole_border(x: Tensor, bits: int, *, signed: bool) -> tuple[Quantize | None, int]:
    """Return the border that a width allows: none, where inputs are such integers already."""
    low, high = limits(bits, signed=signed)
    largest = float(x.abs().max()) if x.numel() else 0.0
    if torch.equal(x, x.round()) and low <= float(x.min()) and float(x.max()) <= high:
        return None, max(int(largest), 1)
    return Quantize(largest / high, bits, signed), high
