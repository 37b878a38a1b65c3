"""Save and load a model: parameters and a description of its layers in one safetensors file.

A name and a shape do not say what a tensor means: the same numbers under another reset are another
model. So a file describes its modules, and ``load`` compares before it touches anything: of this
package's modules all that changes an output in evaluation mode, of any other the class.
"""

from tracetorch.checkpoint.load import Loaded, load
from tracetorch.checkpoint.save import save

__all__ = ["Loaded", "load", "save"]
