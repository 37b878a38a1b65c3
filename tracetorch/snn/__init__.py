"""Neurons: one pure step each, states that manage themselves, parameters that stay in range.

Many processes. States are attributes, which no engine looks at. Kernels read parameters through
copies, or through DLPack, for memory that ``.numpy()`` has shown cannot be freed any more, and FSDP
frees it; a layer's output by layer is no view, for FSDP hangs its hook on it.
"""

from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.connect import connect, disconnect
from tracetorch.snn.delay import Delay, DelayedLinear
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.event_inputs import EventInput, PoissonInput
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.noise import Noise
from tracetorch.snn.parameters import Decay, SpikeFunction, Threshold, Weight
from tracetorch.snn.readout import Readout, RReadout, SReadout, SRReadout
from tracetorch.snn.recurrent import EventRun, Populations, Recurrent
from tracetorch.snn.residual import SEWBlock
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse.edges import (
    distance_edges,
    distance_mask,
    in_degree_edges,
    in_degree_mask,
    population_edges,
    random_edges,
    random_mask,
)
from tracetorch.snn.sparse_linear import SparseLinear
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
    "DelayedLinear",
    "EventInput",
    "EventRun",
    "LeakyIntegrator",
    "LockedDropout",
    "Neuron",
    "Noise",
    "PoissonInput",
    "Populations",
    "RReadout",
    "Readout",
    "Recurrent",
    "SEWBlock",
    "SRReadout",
    "SReadout",
    "SequenceLayer",
    "SparseLinear",
    "SpikeFunction",
    "TTModule",
    "Threshold",
    "Weight",
    "connect",
    "disconnect",
    "distance_edges",
    "distance_mask",
    "in_degree_edges",
    "in_degree_mask",
    "population_edges",
    "random_edges",
    "random_mask",
]
