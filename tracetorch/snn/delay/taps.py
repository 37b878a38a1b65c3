"""Interpolate delays between two steps: the weight of every past step, linear or Gaussian."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor


def hat(distance: Tensor) -> Tensor:
    """Return ``max(0, 1 - |distance|)``, the weight in linear interpolation.

    Its derivative at a kink is the mean of both sides: ``maximum`` divides a tie, ``relu`` would
    give a whole delay no gradient.
    """
    return torch.maximum(1 - distance.abs(), torch.zeros_like(distance))


def taps(delay: Tensor, max_delay: int, sigma: float) -> Tensor:
    """Return the weights of all steps, ``[max_delay + 1, ...]``, the oldest first.

    Example:
        >>> taps(torch.tensor([0.25, 2.0]), 2, 0.0)
        tensor([[0.0000, 1.0000],
                [0.2500, 0.0000],
                [0.7500, 0.0000]])
    """
    lags = torch.arange(max_delay, -1, -1, dtype=delay.dtype, device=delay.device)
    lags = lags.reshape(-1, *[1] * delay.ndim)
    if sigma == 0:
        weights = hat(lags - delay)
        # The steps beyond an end are taken for the end. Their weights are zero, but not their
        # derivatives where a delay is at the end: without them it would have half a gradient there.
        oldest, newest = hat(max_delay + 1 - delay), hat(-1 - delay)
        return torch.cat([weights[:1] + oldest, weights[1:-1], weights[-1:] + newest])
    # scaled before they are subtracted, for there are many distances
    scale = 1 / (sigma * math.sqrt(2))
    # softmin, for the terms of a narrow Gaussian may all be too small for their sum
    return F.softmin((lags * scale - delay * scale).square(), 0)
