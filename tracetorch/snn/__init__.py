"""Neurons: one pure step each, states that manage themselves, parameters that stay in range."""

from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.delay import Delay, DelayedConv1d, DelayedLinear
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.noise import Noise
from tracetorch.snn.parameters import Decay, SpikeFunction, Threshold, Weight
from tracetorch.snn.readout import Readout, RReadout, SReadout, SRReadout
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.residual import SEWBlock
from tracetorch.snn.spiking import BLIF, BRLIF, BSLIF, BSRLIF, LIF, RLIF, SLIF, SRLIF

__all__ = [
    "BLIF",
    "BRLIF",
    "BSLIF",
    "BSRLIF",
    "LIF",
    "RLIF",
    "SLIF",
    "SRLIF",
    "BatchNormThroughTime",
    "Decay",
    "Delay",
    "DelayedConv1d",
    "DelayedLinear",
    "LeakyIntegrator",
    "LockedDropout",
    "Neuron",
    "Noise",
    "RReadout",
    "Readout",
    "Recurrent",
    "SEWBlock",
    "SRReadout",
    "SReadout",
    "SpikeFunction",
    "TTModule",
    "Threshold",
    "Weight",
]
