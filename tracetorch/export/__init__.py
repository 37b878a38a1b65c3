"""Export a model as a program with explicit states: ``(x, states) -> (y, states)``.

``torch.export`` records a pure function, in which a state held by a layer would be a constant.
Here every state is an input and an output, under the name that ``tt.get_states`` gives.
"""

from tracetorch.export.initial import initial_states
from tracetorch.export.onnx_file import onnx
from tracetorch.export.onnx_stream import OnnxStream
from tracetorch.export.sequence import sequence
from tracetorch.export.step import step

__all__ = ["OnnxStream", "initial_states", "onnx", "sequence", "step"]
