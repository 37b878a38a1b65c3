"""Rules that make a smaller circuit of a wire: each returns an equal wire, or ``None``.

A rule may use what is proved of the ranges of its operands; what it returns is equal for every
value in these ranges. Constants are folded, and what a range decides, before any rule. What
synthesis finds by itself, such as logic of constants and choices within choices, is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracetorch.export.verilog_code.wires import Args, Rule, Wire, Wires


def _power(value: int) -> int | None:
    return value.bit_length() - 1 if value > 0 and value & (value - 1) == 0 else None


def _terms(wire: Wire) -> tuple[Wire | None, int]:
    """Return a wire as another one and a constant that is added to it."""
    if wire.op == "const":
        return None, wire.k
    if wire.op == "add" and wire.args[1].op == "const":
        return wire.args[0], wire.args[1].k
    return wire, 0


# Sums


def _add_constants(w: Wires, args: Args, _: int) -> Wire | None:
    # constants behind, and only one of them; what a subtraction of a constant becomes, too
    a, b = args
    if a.op == "const":
        return w.make("add", b, a)
    if b.op != "const":
        return None
    inner, more = _terms(a)
    if not b.k:
        return a
    if more and inner is not None:
        return w.make("add", inner, b.k + more)
    if a.op == "sub" and a.args[0].op == "const":
        return w.make("sub", a.args[0].k + b.k, a.args[1])
    return None


def _subtract_simple(w: Wires, args: Args, _: int) -> Wire | None:
    a, b = args
    if a is b:
        return w.const(0)
    if b.op == "const":
        return w.make("add", a, -b.k)
    if b.op == "sub" and b.args[0].op == "const" and not b.args[0].k:  # x - (0 - y) = x + y
        return w.make("add", a, b.args[1])
    if b.truth and a.op == "const" and a.k == 1:
        return w.opposite(b)
    return None


def _subtract_high(w: Wires, args: Args, _: int) -> Wire | None:
    # v - (v >> k << k) is the low k bits of v; and of v - c with v in the shift, these less c, for
    # (v - c) - (v >> k << k) = low(v) - c. With c = 2^(k - 1) it is the signed part: wrapping.
    a, b = args
    if b.op != "shl" or b.args[0].op != "shr" or b.args[0].k != b.k:
        return None
    k, v = b.k, b.args[0].args[0]
    (one, first), (other, second) = _terms(a), _terms(v)
    if one is None or one is not other:
        return None
    if second - first == 1 << (k - 1):
        return w.make("part", a, k=k)
    return w.make("add", w.make("low", v, k=k), first - second)


# Products


def _multiply_constants(w: Wires, args: Args, _: int) -> Wire | None:
    a, b = args
    if a.op == "const":
        return w.make("mul", b, a)
    if b.op != "const":
        return None
    if b.k == 0:
        return b
    place = _power(abs(b.k))
    if place is None:
        return None  # shifts and sums are for synthesis to find
    shifted = w.make("shl", a, k=place)
    return shifted if b.k > 0 else w.negative(shifted)


def _multiply_truth(w: Wires, args: Args, _: int) -> Wire | None:
    # times 0 or 1 is a choice
    for a, b in (args, args[::-1]):
        if b.truth:
            return w.make("and", a, b) if a.truth else w.make("mux", b, a, 0)
    return None


def _multiply_choice(w: Wires, args: Args, _: int) -> Wire | None:
    # times a choice of powers of two, or of 0 and -1, is a choice of shifts
    for a, b in (args, args[::-1]):
        if b.op != "const" and _simple_factor(b):
            if b.op == "shl":
                return w.make("shl", w.make("mul", a, b.args[0]), k=b.k)
            condition, one, other = b.args
            return w.make("mux", condition, w.make("mul", a, one), w.make("mul", a, other))
    return None


def _simple_factor(wire: Wire) -> bool:
    """Whether a wire is a constant that costs no adder, or a choice of such."""
    if wire.op == "const":
        return wire.k == 0 or _power(abs(wire.k)) is not None
    if wire.op == "shl":
        return _simple_factor(wire.args[0])
    return wire.op == "mux" and all(map(_simple_factor, wire.args[1:]))


# Shifts


def _shift_left(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    if k == 0:
        return a
    return w.make("shl", a.args[0], k=a.k + k) if a.op == "shl" else None


def _shift_right(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    if k == 0:
        return a
    if a.op == "shl":
        op = "shl" if a.k >= k else "shr"
        return w.make(op, a.args[0], k=abs(a.k - k))
    if a.op == "shr":  # rounding down twice is rounding down once
        return w.make("shr", a.args[0], k=a.k + k)
    return None


def _scale(w: Wires, wire: Wire) -> tuple[Wire, list[tuple[Wire, int]]]:
    """Return a wire as a base, shifted left by places: each ``k`` where its condition is false."""
    places = []
    while wire.op == "mux":
        condition, one, other = wire.args
        (first, left), (second, right) = (
            (each.args[0], each.k) if each.op == "shl" else (each, 0) for each in (one, other)
        )
        if first is not second or left == right:
            break
        if right < left:
            condition, one = w.opposite(condition), other
        places.append((condition, abs(right - left)))
        wire = one
    return wire, places


def _shift_right_barrel(w: Wires, args: Args, k: int) -> Wire | None:
    # x << (places that are not chosen) >> k is x >> (k - all places) >> (places that are chosen),
    # for rounding down twice is rounding down once: a chain of choices as wide as the result
    base, places = _scale(w, args[0])
    if not places:
        return None
    k -= sum(place for _, place in places)
    found = w.make("shl", base, k=-k) if k < 0 else w.make("shr", base, k=k)
    for condition, place in sorted(places, key=lambda pair: -pair[1]):
        found = w.make("mux", condition, w.make("shr", found, k=place), found)
    return found


def _low(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    if a.low >= 0 and a.high < 1 << k:
        return a
    if a.op == "shl":
        if a.k >= k:
            return w.const(0)
        return w.make("shl", w.make("low", a.args[0], k=k - a.k), k=a.k)
    inner, constant = _terms(a)
    if inner is not None and constant and constant % (1 << k) == 0:
        return w.make("low", inner, k=k)
    return None


# Comparisons


def _less(w: Wires, args: Args, _: int) -> Wire | None:
    """Bring what is compared with a constant to ``x < constant``."""
    a, b = args
    if a is b:
        return w.const(0)
    if a.op == "const":  # of integers, c < x is not x < c + 1
        return w.opposite(w.make("lt", b, a.k + 1))
    if b.op != "const":
        return None
    if a.op == "shl":  # x 2^k < c: x below c / 2^k, rounded up
        return w.make("lt", a.args[0], -(-b.k >> a.k))
    inner, constant = _terms(a)
    if constant and inner is not None:
        return w.make("lt", inner, b.k - constant)
    if a.op == "sub" and a.args[0].op == "const":  # c - x < d: x > c - d
        return w.make("lt", a.args[0].k - b.k, a.args[1])
    if a.op == "sub" and b.k in (0, 1):  # a sign: x - y < 0: x < y; x - y < 1: not y < x
        one, other = a.args
        return w.make("lt", one, other) if b.k == 0 else w.opposite(w.make("lt", other, one))
    return None


def _less_high(w: Wires, args: Args, _: int) -> Wire | None:
    # below a multiple of 2^k: what the high bits are below; of two bits it is logic
    a, b = args
    if b.op != "const" or not b.k:
        return None
    k = (b.k & -b.k).bit_length() - 1
    if k:
        return w.make("lt", w.make("shr", a, k=k), b.k >> k)
    if a.low >= -2 and a.high <= 1 and abs(b.k) == 1:
        clear, negative = w.opposite(w.make("low", a, k=1)), w.make("lt", a, 0)
        return w.make("or" if b.k > 0 else "and", negative, clear)
    return None


def _not(w: Wires, args: Args, _: int) -> Wire | None:
    (a,) = args
    return a.args[0] if a.op == "not" else None


RULES: dict[str, Sequence[Rule]] = {
    "add": (_add_constants,),
    "sub": (_subtract_simple, _subtract_high),
    "mul": (_multiply_constants, _multiply_truth, _multiply_choice),
    "shl": (_shift_left,),
    "shr": (_shift_right,),
    "low": (_low,),
    "lt": (_less, _less_high),
    "not": (_not,),
}
# For the last pass, behind which nobody looks for a shift any more.
LAST_RULES = {**RULES, "shr": (_shift_right, _shift_right_barrel)}
