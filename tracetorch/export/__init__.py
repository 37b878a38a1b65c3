"""Export a model as a program with explicit states: ``(x, states) -> (y, states)``.

``torch.export`` records a pure function, in which the state of a layer would be a constant.
Here every state is an input and an output, under the name that ``tt.get_states`` gives.

For that reason a layer raises where ``torch.export`` or ``torch.jit.trace`` record it outside of
``tt.export``, unless the traced call itself has zeroed the states: zeroing them and looping over
time inside of the traced call is exact, and allowed.

``tt.export`` runs a step on tensors without values, to find the states and how their shapes follow
the batch, and traces one, in which nothing else may change. Then the program is run before it is
believed: two steps of the model, from random states and from rest, must give what it gives.
It traces with the constrained parameters as constants, because the sigmoid of another runtime could
differ in the last bit, and move a threshold. The program of a sequence is the exported step under
PyTorch's ``scan``. C and the page's JavaScript are printed from the exported step, read as stages.
"""

from tracetorch.export.c_file import CReport, c
from tracetorch.export.onnx_file import onnx
from tracetorch.export.onnx_stream import OnnxStream
from tracetorch.export.page_file import page
from tracetorch.export.program import initial_states
from tracetorch.export.sequence import sequence
from tracetorch.export.step import step
from tracetorch.export.verilog_file import VerilogReport, verilog

__all__ = [
    "CReport", "OnnxStream", "VerilogReport", "c", "initial_states", "onnx", "page", "sequence",
    "step", "verilog",
]  # fmt: skip
