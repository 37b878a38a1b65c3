"""Fixed-point arithmetic: shifts to the right, products in the Q format, and decays by either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice
from tracetorch.integers.rounding import straight_through
from tracetorch.integers.width import check_between

Rounding: TypeAlias = Literal["floor", "trunc", "nearest", "at_least_one"]

_OF_PRODUCTS = ("floor", "trunc", "nearest")
_MOST_SHIFT = 31
_PLACES = (16, 8, 4, 2, 1)  # of a shift that is a tensor


def shift_right(x: Tensor, bits: int | Tensor, rounding: Rounding = "floor") -> Tensor:
    """Shift to the right: divide by a power of two, and round.

    ::

        y = R(x / 2^bits),   dy/dx = 2^-bits

        floor         towards minus infinity: the arithmetic shift of two's complement
        trunc         towards zero: the shift of the magnitude
        nearest       to the nearest, of two equally near ones the larger
        at_least_one  as floor, but 1 where x > 0 would give 0

    With ``at_least_one`` the decay ``x - shift_right(x, bits, "at_least_one")`` reaches zero: a
    step of less than one does not get stuck.

    Args:
        x: integers.
        bits: by how many; an integer of 0 to 31, or a tensor of such, which gets no gradient.
        rounding: one of the four above.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> x = torch.tensor([-7.0, -5.0, 2.0, 3.0])
        >>> for rounding in ("floor", "trunc", "nearest", "at_least_one"):
        ...     print(shift_right(x, 2, rounding).tolist())
        [-2.0, -2.0, 0.0, 0.0]
        [-1.0, -1.0, 0.0, 0.0]
        [-2.0, -1.0, 1.0, 1.0]
        [-2.0, -2.0, 1.0, 1.0]
    """
    check_choice("rounding", rounding, get_args(Rounding))
    scaled = x * _inverse_power_of_two(bits)
    value = _rounded(scaled.detach(), rounding)
    if rounding == "at_least_one":
        value = torch.where(x.detach() > 0, value.clamp(min=1), value)
    return straight_through(scaled, value)


def multiply(
    x: Tensor, y: Tensor | int, fraction_bits: int, rounding: Rounding = "floor"
) -> Tensor:
    """Multiply in the Q format: the product of two integers, of which one has a binary point.

    ::

        z = R(x y / 2^fraction_bits),   dz/dx = y / 2^fraction_bits,   dz/dy = x / 2^fraction_bits

    The product itself is never held: ``x`` is split into a multiple of ``2^fraction_bits`` and the
    rest, and so 24 bits times 12 are exact in float32.

    Args:
        x: integers.
        y: the factor in units of ``2^-fraction_bits``: integers.
        fraction_bits: bits behind the binary point of ``y``; 0 to 31.
        rounding: ``"floor"``, ``"trunc"`` or ``"nearest"``, as for :func:`shift_right`.

    The result is exact where ``|z|`` and ``|y| 2^fraction_bits`` are at most 2^24 in float32, 2^53
    in float64.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        Nine tenths, in eight bits.

        >>> multiply(torch.tensor([1000.0, -1000.0]), 230, 8, "trunc").tolist()
        [898.0, -898.0]
    """
    check_choice("rounding", rounding, _OF_PRODUCTS)
    scale = _inverse_power_of_two(fraction_bits)
    factor = y.detach() if isinstance(y, Tensor) else float(y)
    value = x.detach()
    # of the sign of x, so that what is cut off has the sign of the whole
    parts = torch.trunc(value * scale) if rounding == "trunc" else torch.floor(value * scale)
    # the bounds change nothing: they tell what reads the graph how wide the rest is
    most = 2.0**fraction_bits - 1
    rest = torch.clamp(
        value - parts * 2.0**fraction_bits, -most if rounding == "trunc" else 0, most
    )
    value = parts * factor + _rounded(rest * factor * scale, rounding)
    return straight_through(x * y * scale, value)


@dataclass(frozen=True)
class Multiplier:
    """Decay by a multiplier: ``trace = R(trace decay / 2^bits)``, ``decay`` from 0 to ``2^bits``.

    An averaging trace takes in ``R(x (2^bits - decay) / 2^bits)``.

    Args:
        bits: bits behind the binary point, 1 to 16.
        rounding: ``"trunc"``, towards zero, in which every trace ends; ``"floor"`` or
            ``"nearest"``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> Multiplier(8).leak(torch.tensor([1000.0, -1000.0]), torch.tensor(230.0)).tolist()
        [898.0, -898.0]
    """

    bits: int = 8
    rounding: Rounding = "trunc"

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, _OF_PRODUCTS)
        check_between("bits", self.bits, 1, 16)

    @property
    def largest(self) -> int:
        """The largest decay, with which nothing is forgotten."""
        return int(2**self.bits)

    def leak(self, trace: Tensor, decay: Tensor) -> Tensor:
        """Return what is left of a trace after a step."""
        return multiply(trace, decay, self.bits, self.rounding)

    def inflow(self, x: Tensor, decay: Tensor) -> Tensor:
        """Return what an averaging trace takes in."""
        return multiply(x, self.largest - decay, self.bits, self.rounding)


@dataclass(frozen=True)
class Shift:
    """Decay by a shift: ``trace = trace - R(trace / 2^decay)``, ``decay`` from 0 to 31.

    An averaging trace takes in ``R(x / 2^decay)``.

    Args:
        rounding: ``"at_least_one"``, with which every trace ends in zero; ``"floor"``, ``"trunc"``
            or ``"nearest"``.

    Raises:
        ValueError: ``rounding`` is none of them.

    Example:
        >>> Shift().leak(torch.tensor([1000.0, 3.0, -3.0]), torch.tensor(3.0)).tolist()
        [875.0, 2.0, -2.0]
    """

    rounding: Rounding = "at_least_one"

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, get_args(Rounding))

    @property
    def largest(self) -> int:
        """The largest decay, the slowest one."""
        return _MOST_SHIFT

    def leak(self, trace: Tensor, decay: Tensor) -> Tensor:
        """Return what is left of a trace after a step."""
        return trace - shift_right(trace, decay, self.rounding)

    def inflow(self, x: Tensor, decay: Tensor) -> Tensor:
        """Return what an averaging trace takes in."""
        return shift_right(x, decay, self.rounding)


def _rounded(x: Tensor, rounding: Rounding) -> Tensor:
    if rounding == "trunc":
        return torch.trunc(x)
    below = torch.floor(x)
    # x + 0.5 would round where x has all bits of its dtype
    return below + (x - below >= 0.5).to(x.dtype) if rounding == "nearest" else below


def _inverse_power_of_two(bits: int | Tensor) -> float | Tensor:
    """Return ``2^-bits`` without a rounding: ``exp2`` and ``pow`` may be off in the last place."""
    if not isinstance(bits, Tensor):
        return 2.0 ** -check_between("bits", bits, 0, _MOST_SHIFT)
    rest = bits.detach()
    factor = torch.ones_like(rest)
    for place in _PLACES:
        has = rest >= place
        factor = torch.where(has, factor * 2.0**-place, factor)
        rest = torch.where(has, rest - place, rest)
    return factor


Leak: TypeAlias = Multiplier | Shift
