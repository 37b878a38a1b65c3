"""Fit integers into a number of bits: by saturation, or by wrapping around."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_flag, check_integer
from tracetorch.integers.rounding import clamped, straight_through

_MOST_BITS = 53  # of which float64 holds every integer


def check_between(name: str, value: object, low: int, high: int) -> int:
    """Return an integer; raise ``TypeError`` or ``ValueError`` if it is none of a range."""
    number = check_integer(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {number}.")
    return number


def limits(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Return the least and the largest integer of a width.

    ::

        -2^(bits - 1) .. 2^(bits - 1) - 1,   unsigned  0 .. 2^bits - 1

    Args:
        bits: the width, 1 to 53, of a signed integer at least 2.
        signed: whether it is a signed one, in two's complement.

    Raises:
        TypeError, ValueError: ``bits`` is not an integer, or out of range.

    Example:
        >>> limits(8), limits(4, signed=False)
        ((-128, 127), (0, 15))
    """
    least = 2 if check_flag("signed", signed) else 1
    bits = check_between("bits", bits, least, _MOST_BITS)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def stored_bits(low: float, high: float, *, signed: bool = True) -> int:
    """Return the width of the narrowest type in memory, 8 to 64 bits, that holds a range.

    Example:
        >>> stored_bits(-128, 127), stored_bits(0, 128), stored_bits(0, 128, signed=False)
        (8, 16, 8)
    """
    for bits in (8, 16, 32, 64):
        least = -(2 ** (bits - 1)) if signed else 0
        if least <= low and high < least + 2**bits:
            return bits
    raise ValueError(f"{low:.4g} to {high:.4g} is wider than 64 bits.")


def saturate(x: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Saturate at a width: what does not fit becomes the nearest integer that does.

    ::

        y = min(max(x, low), high),   dy/dx = 1 where low <= x <= high, else 0

    Args:
        x: integers.
        bits: the width, as for :func:`limits`.
        signed: whether it is that of signed integers.

    Example:
        >>> x = torch.tensor([-200.0, 5.0, 127.0, 128.0], requires_grad=True)
        >>> y = saturate(x, 8)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-128.0, 5.0, 127.0, 127.0], [0.0, 1.0, 1.0, 0.0])
    """
    low, high = limits(bits, signed=signed)
    return clamped(x, low, high)


def wrap(x: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Wrap around at a width: keep the lowest bits, as two's complement does.

    ::

        y = x - 2^bits floor((x - low) / 2^bits),   dy/dx = 1

    Args:
        x: integers; ``|x| + 2^bits`` below 2^24 in float32, 2^53 in float64.
        bits: the width, as for :func:`limits`.
        signed: whether it is that of signed integers.

    Example:
        >>> wrap(torch.tensor([-129.0, 127.0, 128.0, 300.0]), 8).tolist()
        [127.0, 127.0, -128.0, 44.0]
    """
    low, high = limits(bits, signed=signed)
    value = x.detach()
    around = torch.floor((value - low) * 2.0**-bits)
    # the bounds change nothing: they tell what reads the graph how wide the result is
    return straight_through(x, torch.clamp(value - around * 2.0**bits, low, high))
