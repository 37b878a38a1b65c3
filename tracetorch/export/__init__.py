"""Export a model as a program with explicit states: ``(x, states) -> (y, states)``.

``torch.export`` records a pure function, in which a state held by a layer would be a constant.
Here every state is an input and an output, under the name that ``tt.get_states`` gives.

Export. ``torch.export`` and ``torch.jit.trace`` record a pure program, in which a state could only
be a constant. A step that is traced before the traced call has zeroed its states raises; zeroing
and looping over time inside the traced call is exact, and allowed. ``tt.export`` makes every state
an input and an output instead. It asks the model on tensors without values which states there are
and how their shapes follow the batch, refuses whatever else changes from step to step, and traces
with the constrained parameters as constants: another runtime's sigmoid would differ in the last
bit, and a threshold with it. A sequence is the exported step under ``scan``, so both are one graph.
"""

from tracetorch.export.initial import initial_states
from tracetorch.export.onnx_file import onnx
from tracetorch.export.onnx_stream import OnnxStream
from tracetorch.export.sequence import sequence
from tracetorch.export.step import step

__all__ = ["OnnxStream", "initial_states", "onnx", "sequence", "step"]
