"""Find the integer unit of every state, and the shift of every product, on a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.chips.target import FloatProduct, Target

_RESERVE = 2.0  # of the range that the sample reaches
_UNEQUAL = 16.0  # channels that are weaker than the strongest by more are rounded more coarsely


@dataclass(frozen=True)
class Feed:
    """A product that feeds neurons, for the choice of its scale."""

    product: FloatProduct  # of the float model
    scale: Tensor  # what one integer of its input stands for
    largest: int  # the largest integer of its input
    gain: Tensor  # by what its weights are multiplied, one number or one per output
    divisor: float  # of the average pools between it and the neurons
    inner: bool  # whether it connects hidden neurons
    growth: float = 1.0  # how much more sums of windows may be


@torch.no_grad()
def unit_and_shifts(
    feeds: list[Feed], reach: Tensor, target: Target, *, per_channel: bool, inner_shift: int | None
) -> tuple[Tensor, list[int]]:
    """Return the unit of states that reach so far, and the shift of products that feed them."""
    high = 2 ** (target.weight_bits - 1) - 1
    reach = _RESERVE * (reach if per_channel else reach.max())
    floor = reach / target.limit
    finest = torch.zeros_like(floor)
    shifts = []
    for feed in feeds:
        rows = feed.product.weight.abs().flatten(1)
        step = rows.max(1).values * (feed.scale * feed.gain) / (high * feed.divisor)
        step = step if per_channel else step.max()
        ratio = step / floor
        ratio = ratio[torch.isfinite(ratio) & (ratio > 0)]
        shift = 0
        if ratio.numel():
            smallest, largest = float(ratio.min()), float(ratio.max())
            shift = math.floor(math.log2(max(smallest, largest / _UNEQUAL)))
        # the sum of all weights of an output, each times the largest input
        fan = float((rows.sum(1) / rows.max(1).values.clamp(min=1e-30)).max())
        most = math.log2(max(fan * high * feed.largest * len(feeds), 1.0))
        # two bits are left of those that float32 holds; sums of windows may take one
        spare = target.sum_bits - most - max(0.0, math.log2(feed.growth) - 1)
        shift = max(0, min(shift, math.floor(spare), target.most_shift))
        if feed.inner and inner_shift is not None:
            shift = inner_shift
        shifts.append(shift)
        finest = torch.maximum(finest, step / 2.0**shift)
    unit = torch.maximum(finest, floor)
    return torch.where(unit > 0, unit, torch.ones_like(unit)), shifts


def common_scale(one: Tensor, other: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the scale of a sum, and its integers in one of either; up to 16 times finer."""
    ratio = max(float(one), float(other)) / min(float(one), float(other))
    off = {k: round(abs(round(k * ratio) / (k * ratio) - 1), 3) for k in range(1, 17)}
    times = min(off, key=lambda k: off[k])
    factors = times, round(times * ratio)
    return torch.minimum(one, other) / times, factors if one <= other else factors[::-1]
