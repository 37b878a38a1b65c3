"""``Wires``: exact integer operations as wires, each with the range that it is proved to have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tracetorch.fuse.ir.intervals import Interval


@dataclass(frozen=True)
class Word:
    """Register or port that holds an integer: unsigned, or signed in two's complement."""

    bits: int
    signed: bool

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
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


Values: TypeAlias = Any  # an int, or an array of them


Args: TypeAlias = "tuple[Wire, ...]"


@dataclass(eq=False)
class Wire:
    """Result of one operation; ``low`` and ``high`` may only come nearer while wires are made."""

    number: int
    op: str
    args: Args
    k: int  # number of places of a shift or a part, the value of a constant
    name: str  # of what is read
    low: int
    high: int

    @property
    def word(self) -> Word:
        return word_between(self.low, self.high)

    @property
    def constant(self) -> bool:
        return self.low == self.high

    @property
    def truth(self) -> bool:
        return self.low >= 0 and self.high <= 1


def signed_part(value: Values, k: int) -> Values:
    """Return the low ``k`` bits of an integer in two's complement."""
    half = 1 << (k - 1)
    return ((value + half) & ((1 << k) - 1)) - half


def _quotient(value: Values, divisor: Values, k: int) -> Values:
    return np.minimum(value // divisor, (1 << k) - 1)


# What each operation computes, of integers of any size; ``k`` comes last where there is one.
COMPUTE: dict[str, Callable[..., Values]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mux": lambda c, a, b: np.where(np.equal(c, 1), a, b),
    "lt": lambda a, b: np.less(a, b) * 1,
    "eq": lambda a, b: np.equal(a, b) * 1,
    # of 0 and 1 alone
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: 1 - a,
    "shl": lambda a, k: a << k,
    "shr": lambda a, k: a >> k,  # rounds down
    "low": lambda a, k: a & ((1 << k) - 1),
    "part": signed_part,
    # by what is positive, rounded down, at most 2^k - 1; becomes others before it is printed
    "quotient": _quotient,
}
PLACES = frozenset({"shl", "shr", "low", "part", "quotient"})


def _range(op: str, args: Sequence[Wire], k: int) -> tuple[int, int]:
    """Return the least and the largest value of an operation, by those of its operands."""
    a = args[0]
    if op in ("low", "part"):  # what lies within is the operand itself, by a rule
        return (0, (1 << k) - 1) if op == "low" else (-(1 << (k - 1)), (1 << (k - 1)) - 1)
    if op == "mux":
        return min(args[1].low, args[2].low), max(args[1].high, args[2].high)
    if op == "lt":
        return int(a.high < args[1].low), int(a.low < args[1].high)
    if op == "eq":
        b = args[1]
        same = a.constant and b.constant and a.low == b.low
        return int(same), int(a.low <= b.high and b.low <= a.high)
    if op == "xor":
        return 0, 1
    if op in PLACES and len(args) == 1:
        ends = [int(COMPUTE[op](end, k)) for end in (a.low, a.high)]
    elif len(args) == 1:
        ends = [int(COMPUTE[op](end)) for end in (a.low, a.high)]
    else:
        function = COMPUTE[op]
        places = (k,) if op in PLACES else ()
        pairs = [(x, y) for x in (a.low, a.high) for y in (args[1].low, args[1].high)]
        ends = [int(function(x, y, *places)) for x, y in pairs]
    return min(ends), max(ends)


Rule: TypeAlias = "Callable[[Wires, Args, int], Wire | None]"


@dataclass
class Wires:
    """Append wires: equal operations are one wire, and rules make smaller ones of some."""

    rules: Mapping[str, Sequence[Rule]]
    wires: list[Wire] = field(default_factory=list)
    known: dict[tuple[Any, ...], Wire] = field(default_factory=dict)

    def read(self, name: str, low: int, high: int) -> Wire:
        """Return a wire for a number that is read."""
        return self._kept(("read", name), "read", (), 0, name, low, high)

    def const(self, value: int) -> Wire:
        return self._kept(("const", value), "const", (), value, "", value, value)

    def make(self, op: str, *operands: Wire | int, k: int = 0) -> Wire:
        args = tuple(self.const(a) if isinstance(a, int) else a for a in operands)
        args = tuple(self.const(a.low) if a.constant else a for a in args)
        if all(arg.constant for arg in args):
            places = (k,) if op in PLACES else ()
            return self.const(int(COMPUTE[op](*(arg.low for arg in args), *places)))
        for rule in self.rules.get(op, ()):
            found = rule(self, args, k)
            if found is not None:
                return found
        low, high = _range(op, args, k)
        if low == high:
            return self.const(low)
        return self._kept((op, *(a.number for a in args), k), op, args, k, "", low, high)

    def narrow(self, wire: Wire, low: int, high: int) -> Wire:
        """Return a wire of which more is known: that it lies between two integers."""
        if wire.op == "const":
            return wire
        if wire.op == "shl":  # a multiple of 2^k
            low, high = -(-low >> wire.k << wire.k), high >> wire.k << wire.k
        wire.low, wire.high = max(wire.low, low), min(wire.high, high)
        return self.const(wire.low) if wire.constant else wire

    def _kept(
        self, key: tuple[Any, ...], op: str, args: Args, k: int, name: str, low: int, high: int
    ) -> Wire:
        if key not in self.known:
            self.known[key] = Wire(len(self.wires), op, args, k, name, low, high)
            self.wires.append(self.known[key])
        return self.known[key]

    # In words of these operations

    def negative(self, a: Wire) -> Wire:
        return self.make("sub", 0, a)

    def opposite(self, a: Wire) -> Wire:
        """Return whether a truth value is false."""
        return self.make("not", a)

    def bit(self, a: Wire, k: int) -> Wire:
        return self.make("low", self.make("shr", a, k=k), k=1)

    def least(self, a: Wire, b: Wire) -> Wire:
        if a.high <= b.low or b.high <= a.low:
            return a if a.high <= b.low else b
        for one, other in ((a, b), (b, a)):
            if one.op == "quotient" and other.op == "const" and other.low >= 0:
                k = min(one.k, other.low.bit_length())  # of no more than 2^k - 1
                short = self.make("quotient", *one.args, k=k)
                if k < one.k:
                    return self.least(short, other)
        if b.op == "const":
            a, b = b, a
        # a largest integer of two's complement with the next one, likewise
        found = self.make("mux", self.make("lt", a, b), a, b)
        return self.narrow(found, min(a.low, b.low), min(a.high, b.high))

    def largest(self, a: Wire, b: Wire) -> Wire:
        if a.high <= b.low or b.high <= a.low:
            return b if a.high <= b.low else a
        for one, other in ((a, b), (b, a)):
            # negative where the dividend is
            if one.op == "quotient" and other.op == "const" and not other.k:
                return self.make("quotient", self.largest(one.args[0], other), one.args[1], k=one.k)
        if a.op == "const":
            a, b = b, a
        # a least integer of two's complement is compared with itself, which takes two bits
        found = self.make("mux", self.make("lt", a, b), b, a)
        return self.narrow(found, max(a.low, b.low), max(a.high, b.high))

    def absolute(self, a: Wire) -> Wire:
        found = self.make("mux", self.make("lt", a, 0), self.negative(a), a)
        return self.narrow(found, 0, max(abs(a.low), abs(a.high)))


def needed(ends: Sequence[Wire]) -> Iterator[Wire]:
    """Yield the wires that some depend on, and these, in order."""
    wanted: dict[int, Wire] = {}
    stack = list(ends)
    while stack:
        wire = stack.pop()
        if wire.number not in wanted:
            wanted[wire.number] = wire
            stack.extend(wire.args)
    yield from (wanted[number] for number in sorted(wanted))
