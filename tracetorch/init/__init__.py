"""Initialise a network: membranes below thresholds, norms by thresholds, blocks as the identity.

From membranes that fluctuate below their thresholds spikes are neither absent nor everywhere, and
gradients pass: Rossbroich, Gygax and Zenke, "Fluctuation-driven initialization for spiking neural
network training", Neuromorphic Computing and Engineering 2, 044016 (2022). What a neuron makes of
its input is taken from its ``step``, so any neuron will do.
"""

from __future__ import annotations

from tracetorch.init.calibrate import calibrate_
from tracetorch.init.fluctuation import fluctuation_
from tracetorch.init.identity import identity_
from tracetorch.init.membranes import Membranes
from tracetorch.init.response import ImpulseResponse, impulse_response
from tracetorch.init.threshold_norm import tdbn_

__all__ = [
    "ImpulseResponse",
    "Membranes",
    "calibrate_",
    "fluctuation_",
    "identity_",
    "impulse_response",
    "tdbn_",
]
