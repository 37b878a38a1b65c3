"""A neuron of two compartments: a dendrite that remembers, a soma that fires."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tracetorch.snn.descriptions import describe_neuron
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    DecaySetup,
    SpikeFunction,
    ThresholdSetup,
    WeightSetup,
)


@describe_neuron
class TCLIF(Neuron):
    """Two-compartment LIF (TC-LIF): dendrite and soma feed each other, and neither leaks.

    ::

        dendrite = dendrite - beta_1 * soma + x
        soma = soma + beta_2 * dendrite
        output = H(soma - pos_threshold)
        dendrite = dendrite - gamma * output;  soma = soma - pos_threshold * output

    The soma holds the dendrite back, the dendrite drives the soma: together they keep a memory
    longer than a leak would. The defaults are those of the authors' program
    (ZhangShimin1/TC-LIF) for digits without recurrence: both couplings start at ``sigmoid(0)``,
    ``gamma`` is 0.5 and the threshold 1 (1.5 for spoken digits). There is no time constant in
    them, so a step may be of any length.

    Args:
        beta_1: coupling of the soma to the dendrite, in (0, 1).
        beta_2: coupling of the dendrite to the soma, in (0, 1).
        gamma: what a spike takes off the dendrite.

    Example:
        >>> layer = TCLIF(1)
        >>> [layer(torch.full((1, 1), x)).item() for x in (1.0, 0.5, 0.5, 0.5)]
        [0.0, 1.0, 0.0, 1.0]

    Reference: Zhang, Yang, Ma, Wu, Li, Tan, "TC-LIF: a two-compartment spiking neuron model for
    long-term sequential modelling", AAAI 2024.
    """

    states: ClassVar[tuple[str, ...]] = ("dendrite", "soma")

    def __init__(
        self,
        num_neurons: int,
        beta_1: DecaySetup = 0.5,
        beta_2: DecaySetup = 0.5,
        gamma: WeightSetup = 0.5,
        pos_threshold: ThresholdSetup = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.gate("beta_1", beta_1)
        self.gate("beta_2", beta_2)
        self.weight("gamma", gamma)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        dendrite: Tensor,
        soma: Tensor,
        *,
        beta_1: Tensor,
        beta_2: Tensor,
        gamma: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        dendrite = dendrite - beta_1 * soma + x
        soma = soma + beta_2 * dendrite
        fired = spike(soma - pos_threshold)
        return fired, dendrite - gamma * fired, soma - pos_threshold * fired
