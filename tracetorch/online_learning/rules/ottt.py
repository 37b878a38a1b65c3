"""Online training through time (OTTT): no derivative of a spike, and one trace for all neurons.

Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022.
"""

from __future__ import annotations

from tracetorch.online_learning.lanes import StepCall
from tracetorch.online_learning.rules.learning_rule import Derivatives, LearningRule
from tracetorch.snn.spike_functions import spike_functions

_SPIKES = "all that a spike does to its own neuron (reset, adaptation) is a constant"


def _derivatives(call: StepCall) -> Derivatives:
    spikes = spike_functions(call.layer)
    return Derivatives(call.derivatives(spikes), (_SPIKES,) if spikes else ())


RULE = LearningRule("ottt", _derivatives, shared=True)
