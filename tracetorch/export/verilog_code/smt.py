"""``StepFormula``: the step of a stage as formulas of SMT-LIB, for proofs about its circuit.

Written from the lines of the graph alone, apart from ``circuit`` and its rules: each number is a
signed bit vector, an integer in units of ``2^-point``, as wide as follows from its operands.
Products of two numbers can be left free within their range, for a prover that is slow with
multipliers: what is proved then holds for whatever a product is, and for the product itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from tracetorch.export.c_code.stages import Pointwise
from tracetorch.fuse.ir.graph import COMPARISONS, Line, Value

Samples: TypeAlias = Any  # an array of integers of any size


@dataclass(frozen=True)
class Term:
    """Number: a bit vector of SMT-LIB, in units of ``2^-point``; ``samples`` are some values."""

    text: str
    low: int
    high: int
    samples: Samples
    point: int = 0
    divisor: Term | None = None  # that it is still to be divided by, positive

    @property
    def bits(self) -> int:
        """Width of the bit vector, which has a sign."""
        return signed_bits(self.low, self.high)

    @property
    def number(self) -> int:
        """Its place among the definitions, -1 for what has none."""
        return int(self.text[1:]) if self.text.startswith("g") else -1


@dataclass(frozen=True)
class Truth:
    """Truth value: a formula of SMT-LIB."""

    text: str
    samples: Samples


@dataclass(frozen=True)
class _Quotient:
    """Quotient rounded down and held between bounds, not yet among the definitions."""

    value: Term
    by: Term
    low: int
    high: int


@dataclass(frozen=True)
class Product:
    """Product of two numbers."""

    one: Term
    other: Term
    term: Term

    @property
    def whole(self) -> list[str]:
        """Its definition."""
        bits = self.term.bits
        factors = f"{resized(self.one, bits)} {resized(self.other, bits)}"
        return [defined(self.term, f"(bvmul {factors})")]

    @property
    def free(self) -> list[str]:
        """Declaration and conditions: its range, and its sign by those of its factors."""
        result, zero = self.term, literal(0, self.term.bits)
        conditions = []
        for first in ("bvsle", "bvsge"):
            for second in ("bvsle", "bvsge"):
                sign = "bvsge" if first == second else "bvsle"
                conditions.append(
                    f"(=> (and ({first} {self.one.text} {literal(0, self.one.bits)}) "
                    f"({second} {self.other.text} {literal(0, self.other.bits)})) "
                    f"({sign} {result.text} {zero}))"
                )
        return [*declared(result), *(f"(assert {each})" for each in conditions)]


@dataclass(frozen=True)
class _Entry:
    """Lines that define a number, or a truth value."""

    term: Term | Truth
    whole: list[str]


@dataclass(frozen=True)
class Read:
    """Number that a step reads: a formula for it, its range, and some values.

    Args:
        text: a bit vector with a sign, as wide as its range needs; a truth value if ``truth``.
        low, high: its range.
        samples: some values.
        point: bits behind its binary point.
        truth: whether it is a truth value.
        powers: the exponents of powers of two, where it is nothing else.
    """

    text: str
    low: int
    high: int
    samples: Samples
    point: int = 0
    truth: bool = False
    powers: Sequence[int] = ()


class StepFormula:
    """Formulas of the lines of a stage, of integers; with ``single``, literals are of float32."""

    def __init__(self, stage: Pointwise, reads: Mapping[str, Read], single: bool) -> None:
        self.stage, self.single = stage, single
        self.entries: list[_Entry | Product] = []
        self.products: list[Product] = []
        self.values: dict[str, Term | Truth | _Quotient] = {}
        self.powers: dict[str, Sequence[int]] = {}
        self.rests: dict[str, Term] = {}  # of long divisions, bit by bit
        self._known: dict[tuple[str, str], Term] = {}
        for name, read in reads.items():
            if read.truth:
                self.values[name] = Truth(read.text, read.samples)
                continue
            term = Term(read.text, read.low, read.high, read.samples, read.point)
            self.values[name] = term = self.defined(read.text, term)
            self.powers[term.text] = read.powers
        for line in stage.graph.lines:
            self.values[line.name] = self.bounded(line) or self.line(line)
        outputs = {name: stage.graph.outputs[name] for name in stage.writes}
        self.outputs = {name: self.value(each) for name, each in outputs.items()}

    def text(self, cuts: Mapping[str, tuple[str, Sequence[str]]]) -> str:
        """Return the definitions.

        Of a number that may be cut out, ``cuts`` has the name of the cut and the lines in place of
        its definition. Both are marked (``if_cut``, ``if_whole``).
        """
        lines = []
        for each in self.entries:
            if each.term.text in cuts:
                name, instead = cuts[each.term.text]
                lines += [if_whole(name, line) for line in each.whole]
                lines += [if_cut(name, line) for line in instead]
            else:
                lines += each.whole
        return "\n".join(lines)

    # Values

    def value(self, value: Value) -> Term | Truth:
        """Return what stands for a value of the graph."""
        if isinstance(value, str):
            if isinstance(found := self.values[value], _Quotient):
                found = self.values[value] = self.divided(found)
            return found
        if isinstance(value, bool):
            return Truth(str(value).lower(), np.array([value], dtype=object))
        number = float(np.float32(value)) if self.single else float(value)
        numerator, denominator = number.as_integer_ratio()
        return constant(numerator, denominator.bit_length() - 1)

    def defined(self, expression: str, like: Term) -> Term:
        """Append the definition of a number, of which ``expression`` has the bits."""
        if like.low == like.high:
            return constant(like.low, like.point)
        term = replace(like, text=f"g{len(self.entries)}")
        self.entries.append(_Entry(term, [defined(term, expression)]))
        return term

    def truth(self, expression: str, samples: Samples) -> Truth:
        """Append the definition of a truth value."""
        name = f"g{len(self.entries)}"
        found = Truth(name, samples)
        self.entries.append(_Entry(found, [f"(define-fun {name} () Bool {expression})"]))
        return found

    def computed(
        self, op: str, args: Sequence[Term], low: int, high: int, samples: Samples, point: int
    ) -> Term:
        """Append an operation of bit vectors that has no carry beyond them."""
        like = Term("", low, high, samples, point)
        wide = max(like.bits, *(arg.bits for arg in args))
        inner = f"({op} {' '.join(resized(arg, wide) for arg in args)})"
        return self.defined(f"((_ extract {like.bits - 1} 0) {inner})", like)

    def chosen(self, condition: Truth, one: Term, other: Term) -> Term:
        """Append a choice."""
        samples = np.where(condition.samples.astype(bool), one.samples, other.samples)
        low, high = min(one.low, other.low), max(one.high, other.high)
        like = Term("", low, high, samples, one.point)
        sides = f"{resized(one, like.bits)} {resized(other, like.bits)}"
        return self.defined(f"(ite {condition.text} {sides})", like)

    # Lines

    def line(self, line: Line) -> Term | Truth:
        """Append a line of the graph."""
        args, op = [self.value(arg) for arg in line.args], line.op
        if op in _LOGIC:
            function = _LOGIC[op][1]
            samples = function(*(arg.samples.astype(bool) for arg in args))
            return self.truth(f"({_LOGIC[op][0]} {' '.join(arg.text for arg in args)})", samples)
        if op == "float":
            (arg,) = args
            return self.chosen(_as_truth(arg), constant(1), constant(0))
        if op == "where":
            condition = _as_truth(args[0])
            one, other = self.aligned([_as_term(arg) for arg in args[1:]])
            return self.chosen(condition, one, other)
        terms = [_as_term(arg) for arg in args]
        if op in COMPARISONS:
            return self.compared(op, terms)
        if op in ("floor", "ceil", "trunc", "round"):
            return self.rounded(op, terms[0])
        if op == "div":
            by = terms[1]
            if by.low == by.high > 0 and by.low & (by.low - 1) == 0 and terms[0].divisor is None:
                point = terms[0].point + by.low.bit_length() - 1 - by.point
                if point >= 0:
                    return replace(terms[0], point=point)
            value, divisor = self.aligned(terms)
            return replace(value, point=0, divisor=replace(divisor, point=0))
        if op == "fma":
            terms, op = [self.product(*terms[:2]), terms[2]], "add"
        if op == "mul":
            return self.product(*terms)
        if op == "neg":
            return replace(self.negative(terms[0]), divisor=terms[0].divisor)
        return self.summed(op, self.aligned(terms), line)

    def summed(self, op: str, terms: Sequence[Term], line: Line) -> Term:
        """Append a sum, a difference, an order or a magnitude of aligned numbers."""
        a, b = terms[0], terms[-1]
        if op == "add":
            low, high = a.low + b.low, a.high + b.high
            return self.computed("bvadd", terms, low, high, a.samples + b.samples, a.point)
        if op == "sub":
            low, high = a.low - b.high, a.high - b.low
            return self.computed("bvsub", terms, low, high, a.samples - b.samples, a.point)
        if op in ("max", "min"):
            order = self.compared("gt" if op == "max" else "lt", [a, b])
            found, ends = self.chosen(order, a, b), max if op == "max" else min
            return self.narrowed(found, ends(a.low, b.low), ends(a.high, b.high))
        if op == "abs":
            found = self.chosen(self.compared("lt", [a, constant(0, a.point)]), self.negative(a), a)
            return self.narrowed(found, 0, max(abs(a.low), abs(a.high)))
        raise ValueError(f"{self.stage.path} computes {line.op}, of which there is no proof here.")

    def narrowed(self, term: Term, low: int, high: int) -> Term:
        """Append the low bits of a number that is known to need no more."""
        like = replace(term, low=max(low, term.low), high=min(high, term.high))
        return self.defined(f"((_ extract {like.bits - 1} 0) {term.text})", like)

    def aligned(self, terms: Sequence[Term]) -> list[Term]:
        """Return numbers with the same number of bits behind their points."""
        if any(term.divisor is not None for term in terms):
            raise ValueError(f"{self.stage.path} computes with a quotient that is not rounded.")
        point = max(term.point for term in terms)
        return [self.shifted(term, point - term.point) for term in terms]

    def shifted(self, term: Term, k: int) -> Term:
        """Append a number times ``2^k`` in as much smaller units."""
        if k == 0:
            return term
        like = Term("", term.low << k, term.high << k, term.samples * 2**k, term.point + k)
        if term.low == term.high:
            return constant(like.low, like.point)
        return self.defined(
            f"((_ extract {like.bits - 1} 0) (concat {term.text} {literal(0, k)}))", like
        )

    def negative(self, term: Term) -> Term:
        """Append the negative of a number."""
        return self.computed("bvneg", [term], -term.high, -term.low, -term.samples, term.point)

    def compared(self, op: str, terms: Sequence[Term]) -> Truth:
        """Append a comparison; of a quotient with zero, that of its dividend."""
        if any(term.low == term.high == 0 for term in terms):
            terms = [replace(term, divisor=None) for term in terms]
            terms = [replace(term, point=0) for term in terms]
        a, b = self.aligned(terms)
        bits = max(a.bits, b.bits)
        text, function = _COMPARED[op]
        sides = f"{resized(a, bits)} {resized(b, bits)}"
        return self.truth(text.format(sides), function(a.samples, b.samples))

    def rounded(self, op: str, term: Term) -> Term:
        """Append a rounding to integers."""
        if term.divisor is not None:
            return self.quotient(op, term, term.divisor)
        k = term.point
        if k == 0:
            return term
        if op == "trunc":
            negative = self.compared("lt", [term, constant(0, k)])
            magnitude = self.rounded("floor", self.negative(term))
            found = self.chosen(negative, self.negative(magnitude), self.rounded("floor", term))
            return self.narrowed(found, *(_towards_zero(e, 1 << k) for e in (term.low, term.high)))
        if op == "ceil":
            return self.negative(self.rounded("floor", self.negative(term)))
        if op == "floor":
            like = Term("", term.low >> k, term.high >> k, term.samples // 2**k)
            wide = resized(term, max(term.bits, like.bits + k))
            return self.defined(f"((_ extract {like.bits + k - 1} {k}) {wide})", like)
        # to the nearest: half more, rounded down; of a tie one less where that is odd
        half = constant(1 << (k - 1), k)
        more = self.summed("add", [term, half], _NO_LINE)
        up = self.rounded("floor", more)
        tie = self.compared("eq", [self.shifted(up, k), more])
        odd = self.truth(f"(= ((_ extract 0 0) {up.text}) #b1)", up.samples % 2 == 1)
        wrong = self.truth(f"(and {tie.text} {odd.text})", tie.samples & odd.samples)
        return self.chosen(wrong, self.summed("add", [up, constant(-1)], _NO_LINE), up)

    def quotient(self, op: str, value: Term, by: Term) -> Term:
        """Append a quotient, rounded down or towards zero."""
        if op not in ("floor", "trunc") or by.low <= 0:
            raise ValueError(f"{self.stage.path} computes with a quotient that is not rounded.")
        value = replace(value, divisor=None)
        if by.low == by.high and (by.low & (by.low - 1)) == 0:
            return self.rounded(op, replace(value, point=by.low.bit_length() - 1))
        if op == "floor" or value.low >= 0:
            return self.divided(_quotient(value, by))
        negative = self.compared("lt", [value, constant(0)])
        found = self.divided(_quotient(self.summed("abs", [value], _NO_LINE), by))
        return self.chosen(negative, self.negative(found), found)

    def bounded(self, line: Line) -> _Quotient | None:
        """Return a quotient rounded down, or a bound of one, which then needs fewer bits."""
        names = [arg for arg in line.args if isinstance(arg, str)]
        found = self.values[names[0]] if len(names) == 1 else None
        if line.op == "floor" and isinstance(found, Term) and found.divisor is not None:
            by = found.divisor
            simple = by.low <= 0 or (by.low == by.high and by.low & (by.low - 1) == 0)
            return None if simple else _quotient(replace(found, divisor=None), by)
        if line.op not in ("min", "max") or not isinstance(found, _Quotient):
            return None
        (bound,) = (float(arg) for arg in line.args if not isinstance(arg, str))
        low = max(found.low, int(bound)) if line.op == "max" else found.low
        high = min(found.high, int(bound)) if line.op == "min" else found.high
        return replace(found, low=low, high=high) if bound.is_integer() and low <= high else None

    def divided(self, quotient: _Quotient) -> Term:
        """Append a long division: of ``k`` bits it is at most ``2^k - 1``."""
        value, by = quotient.value, quotient.by

        def flip(term: Term) -> Term:  # rounded down, the quotient of -1 - x is -1 less that of x
            return self.summed("sub", [constant(-1), term], _NO_LINE)

        negative = self.compared("lt", [value, constant(0)])
        other, bits = constant(0), quotient.high.bit_length()
        if quotient.low < 0:
            other, bits = flip(value), max(bits, (-quotient.low - 1).bit_length())
        rest = self.narrowed(self.chosen(negative, other, value), 0, max(other.high, value.high))
        found = constant(0)
        for place in reversed(range(bits)):
            multiple = replace(self.shifted(by, place), point=0)
            fits = self.compared("ge", [rest, multiple])
            less = self.summed("sub", [rest, multiple], _NO_LINE)
            rest = self.narrowed(self.chosen(fits, less, rest), 0, rest.high)
            self.rests[rest.text] = rest
            bit = self.chosen(fits, constant(1 << place), constant(0))
            found = self.summed("add", [found, bit], _NO_LINE)
        if quotient.low < 0:
            found = self.chosen(negative, flip(found), found)
        for op, end in (("max", quotient.low), ("min", quotient.high)):
            found = self.summed(op, [found, constant(end)], _NO_LINE)
        return found

    # Products

    def product(self, a: Term, b: Term) -> Term:
        """Append a product; a shift or a choice, where a factor is simple."""
        if a.divisor is not None or b.divisor is not None:
            raise ValueError(f"{self.stage.path} computes with a quotient that is not rounded.")
        for one, other in ((a, b), (b, a)):
            if other.low == other.high and (other.low & (other.low - 1)) == 0 and other.low > 0:
                shifted = self.shifted(one, other.low.bit_length() - 1)
                return replace(shifted, point=one.point + other.point)
            if other.low == other.high and other.low in (0, -1):
                found = self.negative(one) if other.low else constant(0)
                return replace(found, point=one.point + other.point)
            if other.low >= -1 and other.high <= 1:
                found = constant(0)
                for value, times in ((1, one), (-1, self.negative(one))):
                    same = self.compared("eq", [replace(other, point=0), constant(value)])
                    if other.low <= value <= other.high:
                        found = self.chosen(same, replace(times, point=0), found)
                return replace(found, point=one.point + other.point)
            if len(self.powers.get(other.text, ())) > 1:
                return self.product_by_power(one, other)
        key = (a.text, b.text)
        if key not in self._known:
            self._known[key] = self.new_product(a, b)
        return self._known[key]

    def product_by_power(self, one: Term, other: Term) -> Term:
        """Append a product by what is a power of two: a choice of shifts."""
        powers = self.powers[other.text]
        plain, factor = replace(one, point=0), replace(other, point=0)
        found = replace(self.shifted(plain, powers[0]), point=0)
        for power in powers[1:]:
            same = self.compared("eq", [factor, constant(1 << power)])
            found = self.chosen(same, replace(self.shifted(plain, power), point=0), found)
        return replace(found, point=one.point + other.point)

    def new_product(self, a: Term, b: Term) -> Term:
        """Append a product that can be left free."""
        ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        name = f"g{len(self.entries)}"
        samples = a.samples * b.samples
        term = Term(name, min(ends), max(ends), samples, a.point + b.point)
        self.products.append(Product(a, b, term))
        self.entries.append(self.products[-1])
        return term


def _quotient(value: Term, by: Term) -> _Quotient:
    ends = [end // divisor for end in (value.low, value.high) for divisor in (by.low, by.high)]
    return _Quotient(value, by, min(ends), max(ends))


_NO_LINE = Line("", "", ())
_LOGIC: Mapping[str, tuple[str, Callable[..., Samples]]] = {
    "and": ("and", np.logical_and),
    "or": ("or", np.logical_or),
    "xor": ("xor", np.logical_xor),
    "not": ("not", np.logical_not),
}
_COMPARED: Mapping[str, tuple[str, Callable[..., Samples]]] = {
    "gt": ("(bvsgt {})", lambda a, b: a > b),
    "ge": ("(bvsge {})", lambda a, b: a >= b),
    "lt": ("(bvslt {})", lambda a, b: a < b),
    "le": ("(bvsle {})", lambda a, b: a <= b),
    "eq": ("(= {})", lambda a, b: a == b),
    "ne": ("(distinct {})", lambda a, b: a != b),
}


def if_cut(name: str, line: str) -> str:
    """Return a line of a question that holds where what has this name is cut out."""
    return f";={name} {line}"


def if_whole(name: str, line: str) -> str:
    """Return a line of a question that holds where what has this name is not cut out."""
    return f";!{name} {line}"


def signed_bits(low: int, high: int) -> int:
    """Return the width of two's complement that holds a range."""
    return max((-low - 1).bit_length() if low < 0 else 0, max(high, 0).bit_length()) + 1


def literal(value: int, bits: int) -> str:
    """Return a bit vector of a number, modulo ``2^bits``."""
    return f"(_ bv{value % (1 << bits)} {bits})"


def defined(term: Term, expression: str) -> str:
    """Return the definition of a number."""
    return f"(define-fun {term.text} () (_ BitVec {term.bits}) {expression})"


def declared(term: Term) -> list[str]:
    """Return the declaration of any number of a range."""
    return [f"(declare-const {term.text} (_ BitVec {term.bits}))", *within(term)]


def inside(term: Term, low: int, high: int) -> list[str]:
    """Return that a number lies in a range."""
    bits = max(term.bits, signed_bits(low, high))
    value = resized(term, bits)
    return [f"(bvsle {literal(low, bits)} {value})", f"(bvsle {value} {literal(high, bits)})"]


def within(term: Term) -> list[str]:
    """Return what asserts that a number lies in its range."""
    return [f"(assert {each})" for each in inside(term, term.low, term.high)]


def constant(value: int, point: int = 0) -> Term:
    """Return a number that is known."""
    text = literal(value, signed_bits(value, value))
    return Term(text, value, value, np.array([value], dtype=object), point)


def resized(term: Term, bits: int) -> str:
    """Return a number in so many bits: its sign before it, or its low bits alone."""
    if bits > term.bits:
        return f"((_ sign_extend {bits - term.bits}) {term.text})"
    return term.text if bits == term.bits else f"((_ extract {bits - 1} 0) {term.text})"


def _towards_zero(value: int, by: int) -> int:
    return value // by if value >= 0 else -(-value // by)


def _as_truth(value: Term | Truth) -> Truth:
    if isinstance(value, Term):
        raise ValueError("a number stands where a truth value is needed.")
    return value


def _as_term(value: Term | Truth) -> Term:
    if isinstance(value, Truth):
        raise ValueError("a truth value stands where a number is needed.")
    return value
