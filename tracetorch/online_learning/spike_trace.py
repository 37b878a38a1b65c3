"""Filter spikes with an exponential trace: what each spike leaves behind, for plasticity."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from tracetorch.cell import StateKind
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer


class SpikeTrace(Neuron):
    """Exponential trace of spikes: a leaky integrator that gives what it was before the spike.

    ::

        before = exp(-1 / tau) * trace
        trace  = before + x                       all spikes count
        trace  = x where there is a spike         ``nearest``: that one alone
    """

    states: ClassVar[tuple[str, ...]] = ("trace",)
    trace: Tensor

    def __init__(self, num_neurons: int, tau: float, nearest: bool = False, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.option("factor", math.exp(-1 / tau))
        self.option("nearest", nearest)

    @staticmethod
    def step(x: Tensor, trace: Tensor, *, factor: float, nearest: bool) -> tuple[Any, ...]:
        """Run one step."""
        before = factor * trace
        kept = before * (x == 0) if nearest else before
        return before, kept + x


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
