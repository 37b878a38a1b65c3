"""Rate coding: encode values as random spike trains."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tracetorch.core.checks import check_count
from tracetorch.encode.values import check_range, check_values


def rate(
    x: Tensor,
    steps: int,
    *,
    kind: Literal["bernoulli", "poisson"] = "bernoulli",
    gain: float = 1.0,
    offset: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw random spikes, independent at every step, at the rate ``gain * x + offset``.

    ::

        bernoulli:  spikes[t] = 1 with probability  r = gain * x + offset,  0 otherwise
        poisson:    spikes[t] = k with probability  r^k exp(-r) / k!

    Both have the mean ``r``, and the gradient is that of the mean: ``d spikes[t] / d r = 1``.

    Args:
        x: values; for images, brightness in [0, 1].
        steps: the number of time steps.
        kind: ``"bernoulli"``: at most one spike a step; ``"poisson"``: any number of them.
        gain: spikes per step and unit of ``x``.
        offset: spikes per step where ``x`` is 0.
        generator: on ``x``'s device; PyTorch's own if left out.

    Shape:
        ``[...]`` to ``[T, ...]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``steps`` not an integer.
        ValueError: a rate is negative, or above 1 for ``"bernoulli"``; ``steps`` is less than 1;
            ``kind`` is unknown.

    Example:
        >>> spikes = rate(torch.tensor([0.0, 0.2, 1.0]), 1000, generator=torch.Generator())
        >>> spikes.shape, spikes.mean(0).round(decimals=1)
        (torch.Size([1000, 3]), tensor([0.0000, 0.2000, 1.0000]))

    Reference:
        D. Heeger, "Poisson model of spike generation", Stanford lecture notes (2000).
    """
    check_values("x", x)
    T = check_count("steps", steps)
    if kind not in ("bernoulli", "poisson"):
        raise ValueError(f"kind must be 'bernoulli' or 'poisson', got {kind!r}.")
    highest = 1.0 if kind == "bernoulli" else math.inf
    r = check_range("the rate gain * x + offset", gain * x + offset, 0.0, highest)
    # drawn in float32 or wider: half precision has too few distinct numbers between 0 and 1
    wide = r.detach().to(torch.promote_types(r.dtype, torch.float32)).expand(T, *r.shape)
    if kind == "bernoulli":
        drawn = torch.rand(wide.shape, dtype=wide.dtype, device=r.device, generator=generator)
        spikes = (drawn < wide).to(r.dtype)
    else:
        spikes = torch.poisson(wide, generator=generator).to(r.dtype)
    # adds zero, and the gradient of the mean
    return spikes + (r - r.detach()) if r.requires_grad else spikes
