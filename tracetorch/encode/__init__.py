"""Encode values, signals and events as spikes or input currents over time, ``[T, ...]``.

Encoders are pure functions on tensors; random ones take ``generator=``. The inverse direction is
``tt.decode``.
"""

from tracetorch.encode.events import events_to_frames
from tracetorch.encode.values import delta, latency, population, rate, repeat

__all__ = ["delta", "events_to_frames", "latency", "population", "rate", "repeat"]
