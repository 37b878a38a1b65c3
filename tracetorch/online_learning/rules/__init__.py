"""The rules of online learning, from the most to the least exact: a value each, and an entry here.

``tt.online`` describes them. ``"exact"`` is real-time recurrent learning, in blocks: Williams and
Zipser, "A learning algorithm for continually running fully recurrent neural networks", Neural
Computation 1 (1989). ``"ottt"`` has no derivative of a spike, and one trace for all neurons: Xiao
et al., "Online training through time for spiking neural networks", NeurIPS 2022. ``"local"`` is of
Meng et al., "Towards memory- and time-efficient backpropagation for training spiking neural
networks", ICCV 2023.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

from tracetorch.online_learning.lanes import StepCall
from tracetorch.online_learning.rules import eprop
from tracetorch.online_learning.rules.learning_rule import Derivatives, LearningRule
from tracetorch.snn.spike_functions import spike_functions

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]

_SPIKES = "all that a spike does to its own neuron (reset, adaptation) is a constant"


def _derivatives(call: StepCall, *, detach: bool) -> Derivatives:
    spikes = spike_functions(call.layer) if detach else ()
    return Derivatives(call.derivatives(spikes), (_SPIKES,) if spikes else ())


RULES: dict[Rule, LearningRule] = {
    "exact": LearningRule("exact", partial(_derivatives, detach=False), lossless=True),
    "eprop": eprop.RULE,
    "ottt": LearningRule("ottt", partial(_derivatives, detach=True), shared=True),
    "local": LearningRule("local", None),
}
