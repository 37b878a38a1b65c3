"""Initialise a network: membranes below thresholds, norms by thresholds, blocks as the identity.

From membranes that fluctuate below their thresholds spikes are neither absent nor everywhere, and
gradients pass (Rossbroich, Gygax and Zenke, 2022). All that is known of a neuron is the response of
its ``step`` to a small impulse, its spike functions replaced by zero; the rest is measured.
"""

from __future__ import annotations

from tracetorch.init.calibrate import calibrate_, fluctuation_
from tracetorch.init.membranes import Membranes
from tracetorch.init.recipe import recipe, spread_
from tracetorch.init.residual import identity_, tdbn_
from tracetorch.init.response import ImpulseResponse, impulse_response

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
