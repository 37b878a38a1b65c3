"""Delay what reaches neurons by times that can be learned, one per neuron or one per synapse."""

from tracetorch.snn.delay.axonal import Delay
from tracetorch.snn.delay.synaptic import DelayedConv1d, DelayedLinear, SynapticDelays

__all__ = ["Delay", "DelayedConv1d", "DelayedLinear", "SynapticDelays"]
