"""traceTorch: spiking neural networks in PyTorch, from one compositional neuron."""

from tracetorch import functional, fuse, loss, snn
from tracetorch.snn.module import detach_states, zero_states
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling import unroll

__version__ = "0.10.0"

__all__ = [
    "__version__",
    "detach_states",
    "functional",
    "fuse",
    "get_states",
    "loss",
    "set_states",
    "snn",
    "unroll",
    "zero_states",
]
