"""A model's parameters, and what its layers are, in one safetensors file."""

from tracetorch.checkpoint.load import Loaded, load
from tracetorch.checkpoint.save import save

__all__ = ["Loaded", "load", "save"]
