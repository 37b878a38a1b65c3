"""``Word``: how an integer of a range is stored in a circuit, its width and its sign."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tracetorch.fuse.ir.intervals import Interval


@dataclass(frozen=True)
class Word:
    """Register or port that holds an integer: unsigned, or signed in two's complement."""

    bits: int
    signed: bool

    @property
    def low(self) -> int:
        """The least integer that it holds."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest integer that it holds."""
        return self.low + (1 << self.bits) - 1


def word_between(low: int, high: int) -> Word:
    """Return the narrowest word that holds a range: without a sign where nothing is negative.

    Example:
        >>> word_between(0, 0), word_between(0, 4), word_between(-4, 3)
        (Word(bits=1, signed=False), Word(bits=3, signed=False), Word(bits=3, signed=True))
    """
    if low >= 0:
        return Word(max(1, high.bit_length()), signed=False)
    return Word(max((-low - 1).bit_length(), max(high, 0).bit_length()) + 1, signed=True)


def whole_ends(interval: Interval, point: int = 0) -> tuple[int, int]:
    """Return the least and the largest integer of an interval in units of ``2^-point``."""
    low, high = float(np.min(interval.low)), float(np.max(interval.high))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{low:g} to {high:g} has no width: give what is saturated.")
    return math.floor(math.ldexp(low, point)), math.ceil(math.ldexp(high, point))


def word_of(interval: Interval, point: int = 0, boolean: bool = False) -> Word:
    """Return the narrowest word for an interval with ``point`` bits of fraction; truth: one."""
    return Word(1, signed=False) if boolean else word_between(*whole_ends(interval, point))
