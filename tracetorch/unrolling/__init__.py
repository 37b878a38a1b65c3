"""Whole sequences through an unchanged model.

Time. By layer, a model is called once on ``[T * B, ...]`` in a pass (``tracetorch/snn/passes.py``);
a neuron layer unfolds time, and nothing without memory needs to know of it. By step is the plain
loop, a pass of ``T`` single steps. By layer is right, or it is refused: a ``forward`` that reads or
writes states, a layer called twice, what the first run finds (``unrolling/first_run.py``).
"""

from tracetorch.unrolling.unroll import unroll

__all__ = ["unroll"]
