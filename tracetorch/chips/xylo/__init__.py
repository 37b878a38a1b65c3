"""Xylo, as its published simulator computes: shifts, weights of 8 bits, states of 16.

One time step, in this order: input spikes, at most 15 a channel, and the spikes of the step before,
hidden neuron by hidden neuron, are added to the synapses, each addition saturating; synapses decay
by a shift with a step of at least one; membranes decay likewise, and take in what the synapses
hold; a hidden neuron fires up to 31 times, an output neuron once. An alias copies the spikes of a
hidden neuron to another. Version 2 adds a bias, and saturates the change of a membrane before it is
added. Thresholds are reached where the membrane is at least as large.

Limits are those of the table in Rockpool's overview of the Xylo family,
rockpool.ai/devices/xylo-overview.html: XyloAudio 2 is Xylo 2 here. No neuron has a bound on the
connections into it. The fan-out, 64 of Xylo 2, is that of one hidden neuron into hidden neurons;
its mean, 32 for each synapse, is not checked.
"""

from tracetorch.chips.target import register
from tracetorch.chips.xylo.configuration import configuration
from tracetorch.chips.xylo.neurons import (
    LIF,
    XYLO_1,
    XYLO_2,
    XYLO_3,
    XYLO_IMU,
    StepDelay,
)
from tracetorch.chips.xylo.target import XyloTarget

__all__ = [
    "LIF", "XYLO_1", "XYLO_2", "XYLO_3", "XYLO_IMU", "StepDelay", "configuration",
]  # fmt: skip

for _chip in (XYLO_1, XYLO_2, XYLO_3, XYLO_IMU):
    register(_chip, XyloTarget)
