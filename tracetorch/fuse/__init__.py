"""Fuse: a layer's ``step`` compiled into one loop over time, forward and backward."""

from tracetorch.fuse.dispatch.backends import (
    NAMES,
    backend,
    requested_backend,
    unavailable_reason,
)
from tracetorch.fuse.dispatch.sequence import unsupported_reason

__all__ = ["NAMES", "backend", "requested_backend", "unavailable_reason", "unsupported_reason"]
