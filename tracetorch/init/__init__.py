"""Initialise a network: membranes below thresholds, norms by thresholds, blocks as the identity.

From membranes that fluctuate below their thresholds spikes are neither absent nor everywhere, and
gradients pass: Rossbroich, Gygax and Zenke, "Fluctuation-driven initialization for spiking neural
network training", Neuromorphic Computing and Engineering 2, 044016 (2022). What a neuron makes of
its input is taken from its ``step``, so any neuron will do.

Initialisation is derived from ``step`` too. The response of a membrane to a small impulse, its
spike functions replaced by zero, is all that ``tt.init`` knows of a neuron
(``tracetorch/init/response.py``); it is linear, so mean and deviation for any input follow by sums.
The rate of a hidden layer is simulated.
"""

from __future__ import annotations

from tracetorch.init.calibrate import calibrate_
from tracetorch.init.fluctuation import fluctuation_
from tracetorch.init.identity import identity_
from tracetorch.init.membranes import Membranes
from tracetorch.init.recipe import recipe
from tracetorch.init.response import ImpulseResponse, impulse_response
from tracetorch.init.spread import spread_
from tracetorch.init.threshold_norm import tdbn_

__all__ = [
    "ImpulseResponse",
    "Membranes",
    "calibrate_",
    "fluctuation_",
    "identity_",
    "impulse_response",
    "recipe",
    "spread_",
    "tdbn_",
]
