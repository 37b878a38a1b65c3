"""Save and load a model: parameters and a description of its layers in one safetensors file.

Checkpoints. A name and a shape do not say what a tensor means: the same numbers under another reset
are another model. So a file describes its modules, and ``load`` compares before it touches
anything: neuron layers by equations, parts, options, constraints and the forward values of their
spike functions; PyTorch's modules by class and the constructor arguments they keep (``extra_repr``
leaves some out); a user's by class name. What changes no output in evaluation mode (surrogates,
``detach_reset``, ``inplace``, ``momentum``, dropout) is not compared, and shapes are compared
before settings, so that sizes need no list. A checksum finds damage that a format cannot.
safetensors is of the core, since every user saves.
"""

from tracetorch.checkpoint.load import Loaded, load
from tracetorch.checkpoint.save import save

__all__ = ["Loaded", "load", "save"]
