"""Save and load a model: parameters and a description of its layers in one safetensors file."""

from tracetorch.checkpoint.load import Loaded, load
from tracetorch.checkpoint.save import save

__all__ = ["Loaded", "load", "save"]
