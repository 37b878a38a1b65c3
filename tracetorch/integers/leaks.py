"""Ways in which an integer trace decays: by a multiplier of some bits, or by a shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from tracetorch.core.checks import check_integer
from tracetorch.integers.fixed_point import Rounding, check_rounding, multiply, shift_right

_MOST_FRACTION = 16
LARGEST_SHIFT = 31


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
        check_rounding(self.rounding)
        if self.rounding == "at_least_one":
            raise ValueError("a product is not rounded 'at_least_one': that is a way to shift.")
        if not 1 <= check_integer("bits", self.bits) <= _MOST_FRACTION:
            raise ValueError(f"bits must be 1 to {_MOST_FRACTION}, got {self.bits}.")

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
        check_rounding(self.rounding)

    @property
    def largest(self) -> int:
        """The largest decay, the slowest one."""
        return LARGEST_SHIFT

    def leak(self, trace: Tensor, decay: Tensor) -> Tensor:
        """Return what is left of a trace after a step."""
        return trace - shift_right(trace, decay, self.rounding)

    def inflow(self, x: Tensor, decay: Tensor) -> Tensor:
        """Return what an averaging trace takes in."""
        return shift_right(x, decay, self.rounding)


Leak: TypeAlias = Multiplier | Shift


def check_leak(name: str, value: object) -> Leak:
    """Return a way to decay; raise ``TypeError`` for anything else."""
    if not isinstance(value, (Multiplier, Shift)):
        raise TypeError(
            f"{name} must be tt.integers.Multiplier(bits) or tt.integers.Shift(), got {value!r}."
        )
    return value
