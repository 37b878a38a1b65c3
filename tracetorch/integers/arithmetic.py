"""Integers in floats: rounding, widths, shifts, products in the Q format, and decays by either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice, check_flag, check_integer
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.core.torch_private import keep_absent

Rounding: TypeAlias = Literal["floor", "trunc", "nearest", "at_least_one"]

_OF_PRODUCTS = ("floor", "trunc", "nearest")
_MOST_BITS = 53  # of which float64 holds every integer
_MOST_SHIFT = 31
_PLACES = (16, 8, 4, 2, 1)  # of a shift that is a tensor

describe = SharedDescriptions(
    {
        "x": "integers.",
        "bits": "the width, 1 to 53, of a signed integer at least 2.",
        "signed": "whether it is that of signed integers, in two's complement.",
        "in_features": "size of the last dimension of the input.",
        "out_features": "size of the last dimension of the output.",
        "in_channels": "channels of the input.",
        "out_channels": "channels of the output.",
        "kernel_size": "size of the window along each of the last dimensions.",
        "stride": "from one output to the next; of a pool ``None`` is ``kernel_size``.",
        "padding": "zeros at both ends.",
        "dilation": "from one weight to the next.",
        "groups": "of channels.",
        "bias": "whether there is one, of 32 bits; it is not shifted.",
        "max_delay": "the largest delay in steps; at least 1.",
        "delay": "whole steps, a number or a tensor of the weight's shape.",
        "shift": "by how many bits the product is shifted to the left, 0 to 16.",
        "weight_bits": "width of a weight, 2 to 16; it is int8, above 8 bits int16.",
    },
    raises={"TypeError, ValueError": "an argument is of another kind or out of range."},
)


class _StraightThrough(torch.autograd.Function):
    # forward and backward are plain tensor operations, so torch.func can derive the rule
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        keep_absent(ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return grad, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Straight-through estimator: ``value`` forward, the gradient of ``x`` backward.

    ``value`` has the shape and dtype of ``x``, and gets no gradient.

    Example:
        >>> x = torch.tensor([0.25, 1.75], requires_grad=True)
        >>> y = straight_through(x, torch.floor(x))
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 1.0], [1.0, 1.0])

    Reference: Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic
    neurons for conditional computation", arXiv:1308.3432 (2013).
    """
    result: Tensor = _StraightThrough.apply(x, value.detach())  # type: ignore[no-untyped-call]
    return result


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; the gradient passes at the ends as well, where PyTorch's depends on its release."""
    inside = (x >= low) & (x <= high)
    return straight_through(torch.where(inside, x, x.detach()), x.detach().clamp(low, high))


def round(x: Tensor) -> Tensor:  # noqa: A001 (the name that PyTorch and NumPy have for it)
    """Round to the nearest integer, of two that are equally near to the even one; ``dy/dx = 1``.

    Example:
        >>> x = torch.tensor([0.5, 1.5, -2.6], requires_grad=True)
        >>> y = round(x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 2.0, -3.0], [1.0, 1.0, 1.0])
    """
    return straight_through(x, torch.round(x.detach()))


def floor(x: Tensor) -> Tensor:
    """Round down, towards minus infinity; for the rest see :func:`round`.

    Example:
        >>> floor(torch.tensor([1.75, -1.25])).tolist()
        [1.0, -2.0]
    """
    return straight_through(x, torch.floor(x.detach()))


def trunc(x: Tensor) -> Tensor:
    """Round towards zero; for the rest see :func:`round`.

    Example:
        >>> trunc(torch.tensor([1.75, -1.25])).tolist()
        [1.0, -1.0]
    """
    return straight_through(x, torch.trunc(x.detach()))


def check_between(name: str, value: object, low: int, high: int) -> int:
    number = check_integer(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {number}.")
    return number


@describe
def limits(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Return the least and the largest integer of a width.

    ::

        -2^(bits - 1) .. 2^(bits - 1) - 1,   unsigned  0 .. 2^bits - 1

    Example:
        >>> limits(8), limits(4, signed=False)
        ((-128, 127), (0, 15))
    """
    least = 2 if check_flag("signed", signed) else 1
    bits = check_between("bits", bits, least, _MOST_BITS)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def stored_bits(low: float, high: float, *, signed: bool = True) -> int:
    """Return the width of the narrowest type in memory, 8 to 64 bits, that holds a range."""
    for bits in (8, 16, 32, 64):
        least = -(2 ** (bits - 1)) if signed else 0
        if least <= low and high < least + 2**bits:
            return bits
    raise ValueError(f"{low:.4g} to {high:.4g} is wider than 64 bits.")


@describe
def saturate(x: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Saturate at a width: what does not fit becomes the nearest integer that does.

    ::

        y = min(max(x, low), high),   dy/dx = 1 where low <= x <= high, else 0

    Example:
        >>> x = torch.tensor([-200.0, 5.0, 127.0, 128.0], requires_grad=True)
        >>> y = saturate(x, 8)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-128.0, 5.0, 127.0, 127.0], [0.0, 1.0, 1.0, 0.0])
    """
    return clamped(x, *limits(bits, signed=signed))


@describe
def wrap(x: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Wrap around at a width: keep the lowest bits, as two's complement does.

    ::

        y = x - 2^bits floor((x - low) / 2^bits),   dy/dx = 1

    It is exact where ``|x| + 2^bits`` is below 2^24 in float32, 2^53 in float64.

    Example:
        >>> wrap(torch.tensor([-129.0, 127.0, 128.0, 300.0]), 8).tolist()
        [127.0, 127.0, -128.0, 44.0]
    """
    low, high = limits(bits, signed=signed)
    value = x.detach()
    around = torch.floor((value - low) * 2.0**-bits)
    # the bounds change nothing: they tell what reads the graph how wide the result is
    return straight_through(x, torch.clamp(value - around * 2.0**bits, low, high))


@describe
def shift_right(x: Tensor, bits: int | Tensor, rounding: Rounding = "floor") -> Tensor:
    """Shift to the right: divide by a power of two, and round.

    ::

        y = R(x / 2^bits),   dy/dx = 2^-bits

        floor         towards minus infinity: the arithmetic shift of two's complement
        trunc         towards zero: the shift of the magnitude
        nearest       to the nearest, of two equally near ones the larger
        at_least_one  as floor, but 1 where x > 0 would give 0: a decay by it reaches zero

    Args:
        x: integers.
        bits: by how many; an integer of 0 to 31, or a tensor of such, which gets no gradient.
        rounding: one of the four above.

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


@describe
def multiply(
    x: Tensor, y: Tensor | int, fraction_bits: int, rounding: Rounding = "floor"
) -> Tensor:
    """Multiply in the Q format: the product of two integers, of which one has a binary point.

    ::

        z = R(x y / 2^fraction_bits),   dz/dx = y / 2^fraction_bits,   dz/dy = x / 2^fraction_bits

    The product itself is never held, ``x`` being split at ``2^fraction_bits``: the result is exact
    where ``|z|`` and ``|y| 2^fraction_bits`` are at most 2^24 in float32, 2^53 in float64.

    Args:
        x: integers.
        y: the factor in units of ``2^-fraction_bits``: integers.
        fraction_bits: bits behind the binary point of ``y``; 0 to 31.
        rounding: ``"floor"``, ``"trunc"`` or ``"nearest"``, as for :func:`shift_right`.

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


@describe
@dataclass(frozen=True)
class Multiplier:
    """Decay by a multiplier: ``trace = R(trace decay / 2^bits)``, ``decay`` from 0 to ``2^bits``.

    An averaging trace takes in ``R(x (2^bits - decay) / 2^bits)``.

    Args:
        bits: bits behind the binary point, 1 to 16.
        rounding: ``"trunc"``, towards zero, in which every trace ends; ``"floor"`` or
            ``"nearest"``.

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


@describe
@dataclass(frozen=True)
class Shift:
    """Decay by a shift: ``trace = trace - R(trace / 2^decay)``, ``decay`` from 0 to 31.

    An averaging trace takes in ``R(x / 2^decay)``.

    Args:
        rounding: ``"at_least_one"``, with which every trace ends in zero; ``"floor"``, ``"trunc"``
            or ``"nearest"``.

    Example:
        >>> Shift().leak(torch.tensor([1000.0, 3.0, -3.0]), torch.tensor(3.0)).tolist()
        [875.0, 2.0, -2.0]
    """

    rounding: Rounding = "at_least_one"
    largest: ClassVar[int] = _MOST_SHIFT  # the slowest decay

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, get_args(Rounding))

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
