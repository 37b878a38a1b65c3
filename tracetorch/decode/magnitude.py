"""Take the magnitude of spikes of either sign."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(spikes: Tensor) -> Tensor:
    """Compute ``|spikes|`` with the slope 1 at 0, so that silent steps have a gradient."""
    return torch.where(spikes < 0, -spikes, spikes)
