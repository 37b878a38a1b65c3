"""Spikes of either sign, counted alike."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(spikes: Tensor) -> Tensor:
    """``|spikes|``, with the slope 1 at 0: a silent step has a gradient, as for upward spikes."""
    return torch.where(spikes < 0, -spikes, spikes)
