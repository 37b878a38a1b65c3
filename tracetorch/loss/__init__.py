"""Losses on outputs of spiking networks, and regularisers of their activity.

One convention: outputs are ``[T, B, ...]``; ``mask`` ``[T, B]`` is true where a step is real, and a
sequence counts as it would alone at its own length; ``reduction`` is over the batch.
``soft_cross_entropy`` alone takes probabilities ``[B, ...]``.
"""

from tracetorch.loss.activity import rate_bounds, silence, spike_l1, spike_l2
from tracetorch.loss.cross_entropy import (
    count_cross_entropy,
    first_spike_cross_entropy,
    membrane_cross_entropy,
    rate_cross_entropy,
    soft_cross_entropy,
    temporal_cross_entropy,
)
from tracetorch.loss.mse import count_mse, first_spike_mse, membrane_mse, rate_mse, van_rossum

__all__ = [
    "count_cross_entropy",
    "count_mse",
    "first_spike_cross_entropy",
    "first_spike_mse",
    "membrane_cross_entropy",
    "membrane_mse",
    "rate_bounds",
    "rate_cross_entropy",
    "rate_mse",
    "silence",
    "soft_cross_entropy",
    "spike_l1",
    "spike_l2",
    "temporal_cross_entropy",
    "van_rossum",
]
