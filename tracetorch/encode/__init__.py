"""From values, signals and events to what spikes are made of: ``[T, ...]``, time first.

Encoders are pure functions on tensors; what is random is seeded by ``generator=``. The way back is
``tt.decode``.
"""

from tracetorch.encode.delta import delta
from tracetorch.encode.events import events_to_frames
from tracetorch.encode.latency import latency
from tracetorch.encode.population import population
from tracetorch.encode.rate import rate
from tracetorch.encode.repeat import repeat

__all__ = ["delta", "events_to_frames", "latency", "population", "rate", "repeat"]
