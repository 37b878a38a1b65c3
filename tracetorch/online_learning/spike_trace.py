"""Filter spikes with an exponential trace: what each spike leaves behind, for plasticity."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from tracetorch.cell import StateKind
from tracetorch.integers.fixed_point import multiply
from tracetorch.integers.width import saturate
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer

# Of integers: bits of a decay (Q15, with products of 32), and of a trace before its binary point.
_DECAY_BITS, _SPIKE_BITS = 15, 8


def decay_factor(tau: float) -> int:
    """Return the decay of a trace as an integer, in units of ``2^-15``."""
    return round(2.0**_DECAY_BITS * math.exp(-1 / tau))


class SpikeTrace(Neuron):
    """Exponential trace of spikes: a leaky integrator that gives what it was before the spike.

    ::

        before = exp(-1 / tau) * trace
        trace  = before + x                       all spikes count
        trace  = x where there is a spike         ``nearest``: that one alone

    With ``fraction_bits`` it is an integer, in units of ``2^-fraction_bits``::

        before = trunc(round(2^15 exp(-1 / tau)) * trace / 2^15)
        trace  = saturate(before + 2^fraction_bits * x, fraction_bits + 8)
    """

    states: ClassVar[tuple[str, ...]] = ("trace",)
    trace: Tensor

    def __init__(
        self,
        num_neurons: int,
        tau: float,
        nearest: bool = False,
        dim: int = -1,
        fraction_bits: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.option("factor", math.exp(-1 / tau) if fraction_bits is None else decay_factor(tau))
        self.option("nearest", nearest)
        self.option("fraction_bits", fraction_bits)

    @staticmethod
    def step(
        x: Tensor, trace: Tensor, *, factor: float, nearest: bool, fraction_bits: int | None
    ) -> tuple[Any, ...]:
        """Run one step."""
        if fraction_bits is None:
            before = factor * trace
            return before, (before * (x == 0) if nearest else before) + x
        before = multiply(trace, int(factor), _DECAY_BITS, "trunc")
        kept = before * (x == 0) if nearest else before
        return before, saturate(kept + 2**fraction_bits * x, fraction_bits + _SPIKE_BITS)


class EligibilityTrace(SequenceLayer):
    """State of the weights of a connection for each sample: changes that wait for a reward.

    Each of its outputs has a number of inputs; ``tau`` is in steps.
    """

    states: ClassVar[tuple[str, ...]] = ("trace",)
    trace: Tensor

    def __init__(self, num_neurons: int, inputs: int, tau: float) -> None:
        super().__init__(num_neurons)
        self._state_kind = StateKind(tail=(inputs,))
        self.tau = tau
