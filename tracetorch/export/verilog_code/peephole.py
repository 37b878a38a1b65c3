"""Rules that make a smaller circuit of a wire: each returns an equal wire, or ``None``.

A rule may use what is proved of the ranges of its operands; what it returns is equal for every
value in these ranges. Constants are folded, and what a range decides, before any rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracetorch.export.verilog_code.wires import Args, Rule, Wire, Wires


def _power(value: int) -> int | None:
    """Return ``k`` of a number ``2^k``."""
    return value.bit_length() - 1 if value > 0 and value & (value - 1) == 0 else None


def _is(wire: Wire, value: int) -> bool:
    return wire.op == "const" and wire.k == value


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
    if _is(b, 0):
        return a
    inner, more = _terms(a)
    if b.op == "const" and more and inner is not None:
        return w.make("add", inner, b.k + more)
    if b.op == "const" and a.op == "sub" and a.args[0].op == "const":
        return w.make("sub", a.args[0].k + b.k, a.args[1])
    return None


def _add_negative(w: Wires, args: Args, _: int) -> Wire | None:
    # x + (0 - y) = x - y
    for a, b in (args, args[::-1]):
        if b.op == "sub" and _is(b.args[0], 0):
            return w.make("sub", a, b.args[1])
    return None


def _add_carry(w: Wires, args: Args, _: int) -> Wire | None:
    # (v >> k) + bit k - 1 of v rounds to the nearest: (v + 2^(k - 1)) >> k, of one product v
    for a, b in (args, args[::-1]):
        if a.op == "shr" and b.op == "low" and b.k == 1:
            (bit,) = b.args
            inner, place = (bit.args[0], bit.k) if bit.op == "shr" else (bit, 0)
            if a.args[0] is inner and place == a.k - 1:
                return w.make("shr", w.make("add", inner, 1 << place), k=a.k)
    return None


def _add_product(w: Wires, args: Args, _: int) -> Wire | None:
    """Join the two parts of ``tt.integers.multiply``, that one multiplier may do both."""
    for whole, rest in (args, args[::-1]):
        if rest.op not in ("shr", "cut"):
            continue
        product, constant = _terms(rest.args[0])
        if product is None or (constant and rest.op == "cut"):
            continue
        for one, factor, place in _products(product):
            for high, same, left in _products(whole):
                # v = (v >> k) 2^k + low bits, so (v >> k) f + ((low f + c) >> k) is
                # (v f + c) >> k: what is added is a multiple of 2^k before the shift. Of a cut,
                # v = cut(v) 2^k + rest, and both have the sign of v, and so both products have one
                # sign (or are zero): then the parts towards zero add up. A factor that is a
                # multiple of a power of two was divided by it, and so are these shifts.
                if (
                    same is factor
                    and _rest_of(one, high, rest.op)
                    and left == high.k + place - rest.k
                ):
                    v = high.args[0]
                    total = w.make("mul", v, factor) if factor is not None else v
                    total = w.make("add", w.make("shl", total, k=place), constant)
                    return w.make(rest.op, total, k=rest.k)
    return None


def _products(product: Wire) -> Sequence[tuple[Wire, Wire | None, int]]:
    """Return a wire as ``x f 2^k``, in both orders; without a factor where it is none."""
    place = 0
    if product.op == "shl":
        product, place = product.args[0], product.k
    orders = (product.args, product.args[::-1]) if product.op == "mul" else ()
    return ((product, None, place), *((a, b, place) for a, b in orders))


def _rest_of(rest: Wire, high: Wire, op: str) -> bool:
    """Whether a wire is what a shift by ``k`` leaves over of what it shifts."""
    if op != high.op or rest.op not in ("low", "sub"):
        return False
    v = high.args[0]
    if op == "shr":
        return rest.op == "low" and rest.k == high.k and rest.args[0] is v
    if rest.op != "sub" or rest.args[0] is not v or rest.args[1].op != "shl":
        return False
    return rest.args[1].k == high.k and rest.args[1].args[0] is high


def _subtract_simple(w: Wires, args: Args, _: int) -> Wire | None:
    a, b = args
    if a is b:
        return w.const(0)
    if b.op == "const":
        return w.make("add", a, -b.k)
    if b.op == "sub" and _is(b.args[0], 0):  # x - (0 - y) = x + y
        return w.make("add", a, b.args[1])
    if b.truth and _is(a, 1):
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


def _subtract_cut(w: Wires, args: Args, _: int) -> Wire | None:
    # v - (cut(v) << k) is what is cut off: less than 2^k, of the sign of v
    a, b = args
    if b.op == "shl" and b.args[0].op == "cut" and b.args[0].k == b.k and b.args[0].args[0] is a:
        most = (1 << b.k) - 1
        key = ("sub", a.number, b.number, 0)
        low, high = (0 if a.low >= 0 else -most), (0 if a.high <= 0 else most)
        found = w._kept(key, "sub", args, 0, "", max(a.low, low), min(a.high, high))
        return w.narrow(found, low, high)
    return None


# Products


def _multiply_constants(w: Wires, args: Args, _: int) -> Wire | None:
    a, b = args
    if a.op == "const":
        return w.make("mul", b, a)
    if b.op != "const":
        return None
    if b.k in (0, 1):
        return w.const(0) if b.k == 0 else a
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


def _multiply_sign(w: Wires, args: Args, _: int) -> Wire | None:
    # times -1, 0 or 1 is a choice, too
    for a, b in (args, args[::-1]):
        if b.low >= -1 and b.high <= 1 and b.op != "const":
            rest = w.make("mux", w.make("low", b, k=1), a, 0) if b.high == 1 else w.const(0)
            return w.make("mux", w.make("lt", b, 0), w.negative(a), rest)
    return None


def _multiply_choice(w: Wires, args: Args, _: int) -> Wire | None:
    # times a choice of powers of two, or of 0 and -1, is a choice of shifts
    for a, b in (args, args[::-1]):
        if _simple_factor(b):
            if b.op == "const":
                return None  # another rule's
            if b.op == "shl":
                return w.make("shl", w.make("mul", a, b.args[0]), k=b.k)
            condition, one, other = b.args
            return w.make("mux", condition, w.make("mul", a, one), w.make("mul", a, other))
    return None


def _simple_factor(wire: Wire) -> bool:
    """Whether a wire is a constant that costs no adder, or a choice of such."""
    if wire.op == "const":
        return abs(wire.k) <= 1 or _power(abs(wire.k)) is not None
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
    if a.op == "low":
        return w.make("low", w.make("shr", a.args[0], k=k), k=a.k - k) if a.k > k else w.const(0)
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


def _barrel(w: Wires, base: Wire, k: int, places: Sequence[tuple[Wire, int]]) -> Wire:
    """Return a base shifted right: by ``k``, negative for left, and each place that is true."""
    found = w.make("shl", base, k=-k) if k < 0 else w.make("shr", base, k=k)
    for condition, place in sorted(places, key=lambda pair: -pair[1]):
        found = w.make("mux", condition, w.make("shr", found, k=place), found)
    return found


def _shift_right_barrel(w: Wires, args: Args, k: int) -> Wire | None:
    # x << (places that are not chosen) >> k is x >> (k - all places) >> (places that are chosen),
    # for rounding down twice is rounding down once: a chain of choices as wide as the result
    base, places = _scale(w, args[0])
    inner, constant = _terms(args[0])
    if inner is not None and constant == 1 << (k - 1) and _scale(w, inner)[1]:
        near = w.make("shr", inner, k=k - 1)  # to the nearest, without a wide sum
        return w.make("add", w.make("shr", near, k=1), w.make("low", near, k=1))
    if not places:
        return None
    return _barrel(w, base, k - sum(place for _, place in places), places)


def _cut_simple(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    if k == 0:
        return a
    if a.op == "shl":
        return w.make("shl" if a.k >= k else "cut", a.args[0], k=abs(a.k - k))
    if a.low >= 0:  # of what is not negative, down is towards zero
        return w.make("shr", a, k=k)
    if a.op == "cut":
        return w.make("cut", a.args[0], k=a.k + k)
    return None


def _cut_barrel(w: Wires, args: Args, k: int) -> Wire | None:
    # towards zero: 2^s - 1 is added to what is negative before the shift by s; all ones shifted
    # left by s, of all bits the opposite, are 2^s - 1
    base, places = _scale(w, args[0])
    if not places:
        return None
    more = k - sum(place for _, place in places)
    if more < 0:
        base, more = w.make("shl", base, k=-more), 0
    ones = w.make("shl", -1, k=more)
    for condition, place in places:
        ones = w.make("mux", condition, w.make("shl", ones, k=place), ones)
    mask = w.make("mux", w.make("lt", base, 0), w.make("sub", -1, ones), 0)
    return _barrel(w, w.make("add", base, mask), more, places)


def _low(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    if a.low >= 0 and a.high < 1 << k:
        return a
    if a.op in ("low", "part") and (k <= a.k or a.op == "low"):
        return w.make("low", a.args[0], k=min(k, a.k))
    if a.op == "shl":
        if a.k >= k:
            return w.const(0)
        return w.make("shl", w.make("low", a.args[0], k=k - a.k), k=a.k)
    inner, constant = _terms(a)
    if inner is not None and constant and constant % (1 << k) == 0:
        return w.make("low", inner, k=k)
    return None


def _part(w: Wires, args: Args, k: int) -> Wire | None:
    (a,) = args
    half = 1 << (k - 1)
    return a if -half <= a.low and a.high < half else None


# Choices


def _choice(w: Wires, args: Args, _: int) -> Wire | None:
    condition, one, other = args
    if condition.op == "const":
        return one if condition.k else other
    if one is other:
        return one
    if condition.op == "not":
        return w.make("mux", condition.args[0], other, one)
    if one.op == "mux" and one.args[0] is condition:
        return w.make("mux", condition, one.args[1], other)
    if other.op == "mux" and other.args[0] is condition:
        return w.make("mux", condition, one, other.args[2])
    return None


def _choice_of_truths(w: Wires, args: Args, _: int) -> Wire | None:
    condition, one, other = args
    if not (one.truth and other.truth):
        return None
    no = w.opposite(condition)
    if one.op == "const":
        return w.make("or", condition, other) if one.k else w.make("and", no, other)
    if other.op == "const":
        return w.make("or", no, one) if other.k else w.make("and", condition, one)
    return None


def _choice_of_bits(w: Wires, args: Args, _: int) -> Wire | None:
    # v - 2^k where bit k is set, of v below 2^(k + 1): the low k bits of v
    condition, one, other = args
    if condition.op != "low" or condition.k != 1:
        return None
    (bit,) = condition.args
    v, k = (bit.args[0], bit.k) if bit.op == "shr" else (bit, 0)
    if v is not other or not (v.low >= 0 and v.high < 2 << k):
        return None
    return w.make("low", v, k=k) if _terms(one) == (v, -(1 << k)) else None


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
    if a.truth:  # below 1 is 0
        return w.opposite(a)
    if a.op == "shl":  # x 2^k < c: x below c / 2^k, rounded up
        return w.make("lt", a.args[0], -(-b.k >> a.k))
    inner, constant = _terms(a)
    if constant and inner is not None:
        return w.make("lt", inner, b.k - constant)
    if a.op == "sub" and a.args[0].op == "const":  # c - x < d: x > c - d
        return w.make("lt", a.args[0].k - b.k, a.args[1])
    return None


def _less_sign(w: Wires, args: Args, _: int) -> Wire | None:
    # a sign alone: of a difference, which is larger; of a product by a positive number, the other
    a, b = args
    if b.op != "const" or b.k not in (0, 1):
        return None
    if a.op == "sub":  # x - y < 0: x < y; x - y < 1: not y < x
        one, other = a.args
        return w.make("lt", one, other) if b.k == 0 else w.opposite(w.make("lt", other, one))
    if a.op == "mul":
        for one, other in (a.args, a.args[::-1]):
            if other.low > 0:
                return w.make("lt", one, b.k)
    return None


def _less_power(w: Wires, args: Args, _: int) -> Wire | None:
    # of 0 .. 2^(k + 1) - 1, what is below 2^k has bit k not set
    a, b = args
    k = _power(b.k) if b.op == "const" else None
    if k is None or a.low < 0 or a.high >= 2 << k:
        return None
    return w.opposite(w.bit(a, k))


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


def _equal(w: Wires, args: Args, _: int) -> Wire | None:
    a, b = args
    if a is b:
        return w.const(1)
    if a.op == "const":
        return w.make("eq", b, a)
    if b.op != "const":
        return None
    if a.truth:
        return a if b.k == 1 else w.opposite(a)
    inner, constant = _terms(a)
    if constant and inner is not None:
        return w.make("eq", inner, b.k - constant)
    if a.op == "shl":
        return w.const(0) if b.k % (1 << a.k) else w.make("eq", a.args[0], b.k >> a.k)
    if b.k == 0 and a.op == "sub":
        return w.make("eq", *a.args)
    if b.k == 0 and a.op == "mul":
        for one, other in (a.args, a.args[::-1]):
            if other.low > 0 or other.high < 0:
                return w.make("eq", one, 0)
    return None


# Logic, of 0 and 1


def _not(w: Wires, args: Args, _: int) -> Wire | None:
    (a,) = args
    return a.args[0] if a.op == "not" else None


def _and(w: Wires, args: Args, _: int) -> Wire | None:
    for a, b in (args, args[::-1]):
        if a.op == "const":
            return b if a.k else w.const(0)
    return args[0] if args[0] is args[1] else None


def _or(w: Wires, args: Args, _: int) -> Wire | None:
    for a, b in (args, args[::-1]):
        if a.op == "const":
            return w.const(1) if a.k else b
    return args[0] if args[0] is args[1] else None


def _xor(w: Wires, args: Args, _: int) -> Wire | None:
    for a, b in (args, args[::-1]):
        if a.op == "const":
            return w.opposite(b) if a.k else b
    return w.const(0) if args[0] is args[1] else None


RULES: dict[str, Sequence[Rule]] = {
    "add": (_add_constants, _add_negative, _add_carry, _add_product),
    "sub": (_subtract_simple, _subtract_high, _subtract_cut),
    "mul": (_multiply_constants, _multiply_truth, _multiply_sign, _multiply_choice),
    "shl": (_shift_left,),
    "shr": (_shift_right,),
    "cut": (_cut_simple,),
    "low": (_low,),
    "part": (_part,),
    "mux": (_choice, _choice_of_truths, _choice_of_bits),
    "lt": (_less, _less_sign, _less_power, _less_high),
    "eq": (_equal,),
    "not": (_not,),
    "and": (_and,),
    "or": (_or,),
    "xor": (_xor,),
}
# For the last pass, behind which nobody looks for a shift any more.
LAST_RULES = {
    **RULES,
    # what joins these two again is left out
    "add": tuple(rule for rule in RULES["add"] if rule is not _add_carry),
    "shr": (_shift_right, _shift_right_barrel),
    "cut": (_cut_simple, _cut_barrel),
}
