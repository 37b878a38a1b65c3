"""Record states, spikes, inputs and gradients of chosen layers over time."""

from tracetorch.probe.record import record
from tracetorch.probe.recording import Recording
from tracetorch.probe.watch import watch

__all__ = ["Recording", "record", "watch"]
