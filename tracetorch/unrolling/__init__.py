"""Whole sequences through an unchanged model.

Time. By layer, a model is called once on ``[T * B, ...]`` in a pass (``tracetorch/snn/passes.py``);
a neuron layer unfolds time, and runs its sequence. So nothing without memory needs to know of time,
and the user's ``forward`` is unchanged. By step is the plain loop, a pass of ``T`` single steps.

By layer is right, or it is refused: a ``forward`` that reads or writes states, a layer that is
called twice, and what remembers or mixes samples, which the first run finds
(``tracetorch/unrolling/first_run.py``).
"""

from tracetorch.unrolling.unroll import unroll

__all__ = ["unroll"]
