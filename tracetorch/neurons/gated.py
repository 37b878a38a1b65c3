"""Gated LIF: learn which kind of leak, of input and of reset a neuron has."""

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
class GLIF(Neuron):
    """Gated LIF (GLIF): three gates mix two kinds of leak, of input and of reset.

    ::

        kept = 1 - leak_gate * (1 - beta)
        mem = kept * mem * (1 - reset_gate * prev_output) - (1 - leak_gate) * leak
              + x * (1 - input_gate * (1 - conductance))
              - (1 - reset_gate) * reset_size * prev_output
        output = H(mem - pos_threshold);  prev_output = output

    ``leak_gate`` leads from a linear leak (0) to an exponential one (1), ``input_gate`` from the
    whole input to a scaled one, ``reset_gate`` from a reset by subtraction to one to zero. The
    paper has a conductance for each step of a short sequence; here it is one. The defaults are the
    paper's, as SpikingJelly has them, for ``T = 4`` steps: ``beta = 0.25``, a threshold and a reset
    of 0.5, a linear leak of ``0.5 / (2 T)``, a conductance of 0.5, and gates that are undecided.
    There is no time constant in them.

    Args:
        leak_gate, input_gate, reset_gate: the gates, in (0, 1).
        beta: decay of the exponential leak, in (0, 1).
        leak: what the linear leak takes off in one step.
        conductance: scale of the input, in (0, 1).
        reset_size: what the reset by subtraction takes off.

    Example:
        >>> layer = GLIF(1)
        >>> [layer(torch.full((1, 1), 0.6)).item() for _ in range(4)]
        [0.0, 1.0, 0.0, 1.0]

    Reference: Yao, Li, Mo, Cheng, "GLIF: a unified gated leaky integrate-and-fire neuron for
    spiking neural networks", NeurIPS 2022.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "prev_output")

    def __init__(
        self,
        num_neurons: int,
        leak_gate: DecaySetup = 0.5,
        input_gate: DecaySetup = 0.5,
        reset_gate: DecaySetup = 0.5,
        beta: DecaySetup = 0.25,
        leak: WeightSetup = 0.0625,
        conductance: DecaySetup = 0.5,
        reset_size: WeightSetup = 0.5,
        pos_threshold: ThresholdSetup = 0.5,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.gate("leak_gate", leak_gate)
        self.gate("input_gate", input_gate)
        self.gate("reset_gate", reset_gate)
        self.decay("beta", beta)
        self.weight("leak", leak)
        self.gate("conductance", conductance)
        self.weight("reset_size", reset_size)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        prev_output: Tensor,
        *,
        leak_gate: Tensor,
        input_gate: Tensor,
        reset_gate: Tensor,
        beta: Tensor,
        leak: Tensor,
        conductance: Tensor,
        reset_size: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        kept = (1 - leak_gate * (1 - beta)) * mem * (1 - reset_gate * prev_output)
        current = x * (1 - input_gate * (1 - conductance))
        removed = (1 - leak_gate) * leak + (1 - reset_gate) * reset_size * prev_output
        mem = kept + current - removed
        fired = spike(mem - pos_threshold)
        return fired, mem, fired
