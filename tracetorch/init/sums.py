"""Move and scale random weights until they and their squares have given sums, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """Sums that the weights of each output shall have, ``[outputs]`` each."""

    weights: Tensor  # of the weights
    squares: Tensor  # of their squares, each times a factor of its own


def with_sums(noise: Tensor, factors: Tensor, present: Tensor, wanted: Sums) -> Tensor | None:
    """Return ``center + scale * noise`` where a weight is present, with the sums that are wanted.

    The noise adds up to 0, so that the sum is that of center alone, and the equation of the squares
    is quadratic in scale. An output without any input has weights of 0. ``None``: the sum of
    weights alone makes more squares than are wanted.
    """
    noise, factors = noise * present, factors * present
    counts = present.sum(1, keepdim=True)
    noise = torch.where(counts > 1, noise - noise.sum(1, keepdim=True) / counts.clamp(min=1), noise)
    noise = noise * present
    center = wanted.weights / counts.squeeze(1).clamp(min=1)
    free = wanted.squares - factors.sum(1) * center.square()
    some = counts.squeeze(1) > 0
    if not bool((free > 0)[some].all()):
        return None
    # what scale adds that much to the square, with the part that noise and mean have in common
    common = center * (factors * noise).sum(1)
    noisy = (factors * noise.square()).sum(1)
    scale = ((common.square() + noisy * free).sqrt() - common) / noisy
    weights = (center[:, None] + noise * scale[:, None]) * present
    return torch.where(some[:, None], weights, 0.0)


def with_sums_and_signs(noise: Tensor, factors: Tensor, wanted: Sums) -> Tensor | None:
    """Return the noise with its positive and its negative part scaled, by two factors a row.

    ::

        a E - b I = sum of weights,  a^2 EE + b^2 II = sum of squares

    with E and I the sums of both parts and EE and II those of their squares: an equation that is
    quadratic in b. A row of one sign alone has the sum of squares, and what sum comes of it.
    ``None``: no positive factors give the sums.
    """
    positive, negative = noise.clamp(min=0), (-noise).clamp(min=0)
    e, i = positive.sum(1), negative.sum(1)
    ee, ii = ((factors * part.square()).sum(1) for part in (positive, negative))
    both, some = (e > 0) & (i > 0), (e > 0) | (i > 0)
    # (sum + b I)^2 EE / E^2 + b^2 II = squares
    share = ee / e.square().clamp(min=1e-300)
    linear = wanted.weights * i * share
    quadratic = i.square() * share + ii
    left = wanted.squares - wanted.weights.square() * share
    root = (linear.square() + quadratic * left).clamp(min=0).sqrt()
    b = (root - linear) / quadratic.clamp(min=1e-300)
    a = (wanted.weights + b * i) / e.clamp(min=1e-300)
    if bool(((a < 0) | (b < 0) | (linear.square() + quadratic * left < 0))[both].any()):
        return None
    alone = (wanted.squares / (ee + ii).clamp(min=1e-300)).sqrt()
    a, b = torch.where(both, a, alone), torch.where(both, b, alone)
    weights = a[:, None] * positive - b[:, None] * negative
    return torch.where(some[:, None], weights, 0.0)
