"""Encode values, signals and events as spikes or input currents over time, ``[T, ...]``.

Encoders are pure functions on tensors; random ones take ``generator=``. The inverse direction is
``tt.decode``.
"""

from tracetorch.encode.delta import delta
from tracetorch.encode.events import events_to_frames
from tracetorch.encode.latency import latency
from tracetorch.encode.population import population
from tracetorch.encode.rate import rate
from tracetorch.encode.repeat import repeat

__all__ = ["delta", "events_to_frames", "latency", "population", "rate", "repeat"]
