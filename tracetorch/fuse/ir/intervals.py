"""Intervals of a step's graph: how large every line can become, in which unit, and if exactly.

``bounds`` is the table of one step, ``invariant`` that of any number of steps: states grow from
what they start from until nothing grows any more, their ends widened to powers of two, so that a
proof takes a few rounds. What is found holds for every sequence of inputs within their interval.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.fuse.ir.graph import COMPARISONS, Graph, Line, Value

# The largest integer up to which a dtype holds all.
MOST_EXACT = {torch.float32: 2.0**24, torch.float64: 2.0**53}
_ROUNDS = 4  # before ends are widened
_WIDEST = 64  # bits, beyond which a state is taken to grow forever

Numbers: TypeAlias = float | NDArray[Any]
Flags: TypeAlias = bool | NDArray[Any]
Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Interval:
    """Range of the values of a line: a number for all neurons, or an array with one for each.

    Args:
        low, high: the least and the largest value.
        step: every value is a multiple of ``2^step``: 0 for integers, ``-inf`` for real numbers.
        exact: whether no rounding can have happened on the way.
        signed: whether, where values are rounded, their signs are right.
        floored: whether rounding them down or towards zero gives what it should.

    Example:
        >>> Interval(-128, 127).bits, Interval(0, 0.75, step=-2).unit
        (8, 0.25)
    """

    low: Numbers
    high: Numbers
    step: Numbers = 0.0
    exact: Flags = True
    signed: Flags = False
    floored: Flags = False

    @property
    def magnitude(self) -> float:
        """The largest magnitude of all neurons."""
        return float(np.max(self._magnitudes()))

    @property
    def unit(self) -> float:
        """Value of one integer in a register for every neuron, 1 or a power of two below."""
        step = float(np.min(self.step))
        if step == -np.inf:
            raise ValueError("there is no width that holds every real number.")
        return float(2.0 ** min(step, 0.0))

    @property
    def bits(self) -> int:
        """Width of a signed integer that holds the value of every neuron, in units of ``unit``."""
        unit = self.unit
        if self.magnitude == np.inf:
            raise ValueError("there is no width that holds every real number.")
        low, high = int(np.min(self.low) / unit), int(np.max(self.high) / unit)
        return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length()) + 1

    def _magnitudes(self) -> NDArray[Any]:
        return np.maximum(np.abs(self.low), np.abs(self.high))


def hull(x: Interval, y: Interval) -> Interval:
    return Interval(
        np.minimum(x.low, y.low),
        np.maximum(x.high, y.high),
        np.minimum(x.step, y.step),
        np.logical_and(x.exact, y.exact),
    )


def _largest(x: Interval, most: float) -> NDArray[Any]:
    """Return up to what all multiples of the step are numbers of a dtype."""
    return np.asarray(most * np.exp2(np.clip(x.step, -_WIDEST, 0.0)))


def _fits(x: Interval, most: float) -> NDArray[Any]:
    """Return whether every value is one of a dtype that holds all integers up to ``most``."""
    fitting: NDArray[Any] = np.logical_or(np.isneginf(x.step), x._magnitudes() <= _largest(x, most))
    return fitting


def overall(x: Interval) -> Interval:
    """Return one interval that holds those of all neurons."""
    low, high, step = np.min(x.low), np.max(x.high), np.min(x.step)
    return Interval(float(low), float(high), float(step), bool(np.all(x.exact)))


def with_zero(x: Interval) -> Interval:
    """Return an interval that holds zero too, which is what silence is."""
    return replace(x, low=np.minimum(x.low, 0.0), high=np.maximum(x.high, 0.0))


def weighted_sums(rows: Tensor, bias: Tensor | None, source: Interval) -> tuple[Interval, Interval]:
    """Return the interval of weighted sums, and of a register that adds them in whatever order."""
    rows = rows.detach().flatten(1).double()
    added = rows.new_zeros(len(rows)) if bias is None else bias.detach().double()
    low, high = float(np.min(source.low)), float(np.max(source.high))
    # a weight of zero takes nothing of what has no bound
    ends = [torch.where(rows == 0, 0.0, rows * end) for end in (low, high)]
    least = torch.minimum(*ends).clamp(max=0).sum(1)
    largest = torch.maximum(*ends).clamp(min=0).sum(1)
    # the bias first or last
    lowest, highest = least + added.clamp(max=0), largest + added.clamp(min=0)
    step = min(0.0, float(np.min(source.step)))
    return (
        Interval(float((least + added).min()), float((largest + added).max()), step),
        Interval(float(lowest.min()), float(highest.max()), step),
    )


def check_reach(place: str, reached: Interval, dtype: torch.dtype) -> None:
    """Raise ``ValueError``, with the name of a place, where integers of a range may be rounded."""
    most = MOST_EXACT[dtype]
    if not np.isneginf(reached.step) and not reached.magnitude <= most:
        raise ValueError(
            f"{place} can reach {reached.magnitude:.0f}, and {dtype} holds every integer up to "
            f"{most:.0f} only. Give x.double(), and model.double()."
        )


def _steps(values: NDArray[Any] | float) -> NDArray[Any]:
    """Return of each number the largest power of two that it is a multiple of."""
    mantissa, exponent = np.frexp(values)
    with np.errstate(invalid="ignore"):
        whole = np.asarray(np.abs(mantissa) * 2.0**53).astype(np.int64)
    steps = np.log2(np.maximum(whole & -whole, 1)) + exponent - 53
    found: NDArray[Any] = np.where(np.isfinite(values), steps, -np.inf)
    return np.where(np.equal(values, 0), np.inf, found)


def constant(value: float) -> Interval:
    return Interval(value, value, float(_steps(value)))


def interval_of(values: Tensor | Interval, finest: float = 0.0) -> Interval:
    """Return the range of a tensor: integers, multiples of ``2^finest``, or any; NaN: no ends."""
    if isinstance(values, Interval):
        return values
    numbers = values.detach().double().numpy(force=True)
    if not np.isfinite(numbers).all():
        return Interval(-np.inf, np.inf, -np.inf)
    step = min(0.0, float(_steps(numbers).min()))
    step = step if step >= finest else -np.inf
    return Interval(float(numbers.min()), float(numbers.max()), step)


Rule: TypeAlias = Callable[..., Interval]


def _sum(x: Interval, y: Interval) -> Interval:
    step = np.minimum(x.step, y.step)
    exact = np.logical_and(x.exact, y.exact) & ~np.isneginf(step)
    return Interval(x.low + y.low, x.high + y.high, step, exact)


def _negative(x: Interval) -> Interval:
    return Interval(np.negative(x.high), np.negative(x.low), x.step, x.exact)


def _ends(function: Callable[..., Any], x: Interval, y: Interval) -> tuple[Any, Any]:
    values = [function(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    ends = np.stack(np.broadcast_arrays(*values))
    ends = np.nan_to_num(ends, nan=0.0, posinf=np.inf, neginf=-np.inf)  # infinity times zero
    return ends.min(0), ends.max(0)


def _product(x: Interval, y: Interval) -> Interval:
    with np.errstate(invalid="ignore"):
        low, high = _ends(np.multiply, x, y)
        step = np.where(np.isposinf(x.step) | np.isposinf(y.step), np.inf, np.add(x.step, y.step))
    exact = np.logical_and(x.exact, y.exact) & ~np.isneginf(step)
    # times a positive number of any size: the product is rounded, but its sign is not
    signed = np.logical_and(x.exact, np.greater(y.low, 0))
    signed = signed | np.logical_and(y.exact, np.greater(x.low, 0))
    return Interval(low, high, step, exact, signed)


def _quotient(x: Interval, y: Interval) -> Interval:
    if np.any(np.less_equal(y.low, 0) & np.greater_equal(y.high, 0)):
        return Interval(-np.inf, np.inf, -np.inf, False)
    inverse = Interval(np.divide(1.0, y.high), np.divide(1.0, y.low), -np.inf)
    exponent = np.frexp(y.low)
    power = np.equal(y.low, y.high) & np.equal(np.abs(exponent[0]), 0.5)
    product = _product(x, replace(inverse, step=np.where(power, 1.0 - exponent[1], -np.inf)))
    with np.errstate(invalid="ignore"):  # not by the inverse, for 49 * (1 / 49) is less than 1
        low, high = _ends(np.divide, x, y)
    whole = np.greater_equal(x.step, 0) & np.greater_equal(y.step, 0)
    return replace(product, low=low, high=high, floored=whole & np.logical_and(x.exact, y.exact))


def _integers(function: Callable[[Numbers], Any], *, nearest: bool = False) -> Rule:
    def rule(x: Interval) -> Interval:
        exact = x.exact if nearest else np.logical_or(x.exact, x.floored)
        return Interval(function(x.low), function(x.high), np.maximum(x.step, 0.0), exact)

    return rule


def _ordered(function: Callable[[Numbers, Numbers], Any]) -> Rule:
    def rule(x: Interval, y: Interval) -> Interval:
        ends = function(x.low, y.low), function(x.high, y.high)
        step = np.minimum(x.step, y.step)
        return Interval(*ends, step, np.logical_and(x.exact, y.exact))

    return rule


def _absolute(x: Interval) -> Interval:
    inside = np.less_equal(x.low, 0) & np.greater_equal(x.high, 0)
    low = np.where(inside, 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))
    return Interval(low, x._magnitudes(), x.step, x.exact)


def _truth(always: Any, never: Any, *parts: Interval) -> Interval:
    exact: Any = np.logical_and.reduce(np.broadcast_arrays(True, *(part.exact for part in parts)))
    return Interval(np.where(always, 1.0, 0.0), np.where(never, 0.0, 1.0), 0.0, exact)


def _comparison(op: str) -> Rule:
    def rule(x: Interval, y: Interval) -> Interval:
        if op in ("lt", "le"):
            return _comparison({"lt": "gt", "le": "ge"}[op])(y, x)
        # against zero a sign is enough
        x_zero = np.equal(x.low, 0) & np.equal(x.high, 0)
        y_zero = np.equal(y.low, 0) & np.equal(y.high, 0)
        x = replace(x, exact=np.logical_or(x.exact, np.logical_and(x.signed, y_zero)))
        y = replace(y, exact=np.logical_or(y.exact, np.logical_and(y.signed, x_zero)))
        above, below = np.greater(x.low, y.high), np.less(x.high, y.low)
        if op == "gt":
            return _truth(above, np.less_equal(x.high, y.low), x, y)
        if op == "ge":
            return _truth(np.greater_equal(x.low, y.high), below, x, y)
        points = np.equal(x.low, x.high) & np.equal(y.low, y.high) & np.equal(x.low, y.low)
        apart = above | below
        return _truth(points, apart, x, y) if op == "eq" else _truth(apart, points, x, y)

    return rule


def _chosen(condition: Interval, x: Interval, y: Interval) -> Interval:
    union = hull(x, y)
    always, never = np.equal(condition.low, 1), np.equal(condition.high, 0)

    def pick(name: str) -> NDArray[Any]:
        first, second, both = (getattr(each, name) for each in (x, y, union))
        picked: NDArray[Any] = np.where(always, first, np.where(never, second, both))
        return picked

    exact = np.logical_and(pick("exact"), condition.exact)
    return Interval(pick("low"), pick("high"), pick("step"), exact)


RULES: dict[str, Rule] = {
    "add": _sum,
    "sub": lambda x, y: _sum(x, _negative(y)),
    "mul": _product,
    "div": _quotient,
    "neg": _negative,
    "fma": lambda x, y, z: _sum(_product(x, y), z),
    "abs": _absolute,
    "max": _ordered(np.maximum),
    "min": _ordered(np.minimum),
    "where": _chosen,
    "float": lambda x: x,
    "floor": _integers(np.floor),
    "ceil": _integers(np.ceil, nearest=True),
    "trunc": _integers(np.trunc),
    "round": _integers(np.rint, nearest=True),
    **{op: _comparison(op) for op in COMPARISONS},
    "and": _ordered(np.minimum),
    "or": _ordered(np.maximum),
    "xor": lambda x, y: _truth(False, False, x, y),
    "not": lambda x: Interval(np.subtract(1.0, x.high), np.subtract(1.0, x.low), 0.0, x.exact),
}
# Operations that numbers too large for their dtype may enter, for they ask for the order alone.
_ORDER = COMPARISONS | {"max", "min"}


@dataclass(frozen=True)
class Bounds:
    """Proof about a step: the interval of every line and of every output.

    Args:
        lines: of each line of the graph with its interval, in order of computation.
        outputs: the interval of ``output`` and of every ``next_<state>``, by name.
        inputs: that of everything that the graph reads, by name.
        dtype: of the arithmetic.

    Example:
        >>> from tracetorch import integers
        >>> layer = integers.LeakyIntegrator(1, beta=0, decay=integers.Multiplier(8))
        >>> found = integers.prove(layer, {"x": Interval(-5, 9)})
        >>> for line, interval in found.lines[-2:]:
        ...     print(line.op, interval.bits)
        max 5
        min 5
        >>> found.exact, found["x"].bits, found[0.25].unit
        (True, 5, 0.25)
    """

    lines: tuple[tuple[Line, Interval], ...]
    outputs: Mapping[str, Interval]
    inputs: Mapping[str, Interval]
    dtype: torch.dtype

    def __getitem__(self, value: Value) -> Interval:
        """Return the interval of what a line may take: a line or an input by name, or a literal."""
        return self._by_name[value] if isinstance(value, str) else _literal(value, self.dtype)

    @cached_property
    def _by_name(self) -> dict[str, Interval]:
        return {line.name: interval for line, interval in self.lines} | dict(self.inputs)

    @property
    def exact(self) -> bool:
        """Whether every output is what integers would give."""
        return all(np.all(interval.exact) for interval in self.outputs.values())

    @property
    def fault(self) -> str:
        """The first line that need not be exact, in words; empty where all are."""
        if self.exact:
            return ""
        for line, interval in self.lines:
            if not np.all(interval.exact | interval.signed | interval.floored):
                return f"in its step {line}, which reaches {interval.magnitude:.4g}, may be rounded"
        name, found = next((n, i) for n, i in self.outputs.items() if not np.all(i.exact))
        return f"{name} reaches {found.magnitude:.4g}"


def _literal(value: float | bool, dtype: torch.dtype) -> Interval:
    return constant(float(np.float32(value) if dtype is torch.float32 else value))


def bounds(graph: Graph, inputs: Mapping[str, Interval], dtype: torch.dtype) -> Bounds:
    """Return the interval of every line of a graph, of float32 or float64."""
    values, most = dict(inputs), MOST_EXACT[dtype]

    def of(value: Value) -> Interval:
        return values[value] if isinstance(value, str) else _literal(value, dtype)

    found = []
    for line in graph.lines:
        if line.op not in RULES:
            raise ValueError(f"{line.op} has no rule of interval arithmetic: it is not exact.")
        args = [of(arg) for arg in line.args]
        interval = RULES[line.op](*args)
        for index, arg in enumerate(args):
            fits: Any = _fits(arg, most)
            if line.op in _ORDER:
                # What does not fit is rounded, but it stays beyond all that fits.
                fits = fits | (args[1 - index]._magnitudes() < _largest(arg, most))
            if not np.all(fits):
                interval = replace(
                    interval,
                    exact=np.logical_and(interval.exact, fits),
                    signed=np.logical_and(interval.signed, fits),
                    floored=np.logical_and(interval.floored, fits),
                )
        values[line.name] = interval
        found.append((line, interval))
    ends = {name: of(value) for name, value in graph.outputs.items()}
    ends = {n: replace(v, exact=np.logical_and(v.exact, _fits(v, most))) for n, v in ends.items()}
    return Bounds(tuple(found), ends, dict(inputs), dtype)


def invariant(
    starts: Mapping[Key, Interval],
    step: Callable[[dict[Key, Interval], bool], tuple[Found, Mapping[Key, Interval]]],
) -> tuple[Found, dict[Key, Interval]]:
    """Return what a step computes over any number of steps; its second argument: the last ones."""
    states = dict(starts)

    def advanced(last: bool = False) -> tuple[Found, dict[Key, Interval]]:
        found, ends = step(states, last)
        # by induction: where states are exact, are the next ones?
        return found, {n: replace(hull(s, ends[n]), exact=True) for n, s in starts.items()}

    attempt = 0
    while True:
        grown = {name: hull(states[name], end) for name, end in advanced()[1].items()}
        if all(_same(states[name], grown[name]) for name in states):
            break
        if attempt >= _ROUNDS:  # at most as many rounds as there are powers of two
            grown = {name: _widened(states[name], grown[name]) for name in states}
        states, attempt = grown, attempt + 1
    # what was widened too far comes back: the image of what holds everything does, too
    for _ in range(_ROUNDS):
        states = advanced()[1]
    return advanced(last=True)[0], states


def _same(x: Interval, y: Interval) -> bool:
    pairs = ((x.low, y.low), (x.high, y.high), (x.step, y.step))
    return all(np.array_equal(np.broadcast_to(a, np.shape(b)), b, equal_nan=True) for a, b in pairs)


def _widened(before: Interval, after: Interval) -> Interval:
    """Return an interval whose grown ends are powers of two, and at last infinite."""
    # in two's complement: -2^k below, 2^k - 1 above
    fraction, power = np.frexp(np.maximum(np.negative(after.low), 0.0))
    low = -np.exp2(power - (fraction == 0.5)) * (fraction > 0)
    high = np.exp2(np.frexp(np.maximum(after.high, 0.0))[1]) - np.greater_equal(after.step, 0)
    low = np.where(np.less(after.low, before.low), np.minimum(low, after.low), after.low)
    high = np.where(np.greater(after.high, before.high), np.maximum(high, after.high), after.high)
    low = np.where(low < -(2.0**_WIDEST), -np.inf, low)
    high = np.where(high > 2.0**_WIDEST, np.inf, high)
    step = np.where(np.less(after.step, -_WIDEST), -np.inf, after.step)
    return Interval(low, high, step, after.exact)
