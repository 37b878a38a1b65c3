"""Decode the output of a network over time: rates, counts, first spikes, membranes.

Every decoder is a pure function from ``[T, B, ...]`` to ``[B, ...]``. With ``mask`` ``[T, B]``,
true where a step is real, the result for each sequence equals that without its padding.
"""

from tracetorch.decode.decoders import count, first_spike, last, maximum, rate

__all__ = ["count", "first_spike", "last", "maximum", "rate"]
