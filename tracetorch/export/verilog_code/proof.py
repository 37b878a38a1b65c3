"""``proof_files``: what yosys and z3 need to prove a printed step equal to its graph, for ever.

Three kinds of questions, each in a file of its own; z3's answer ``unsat`` is: no counterexample.

- *Equal*: for everything that a step may read within the proved ranges, an output of the Verilog,
  as yosys reads it, is that of the graph (``smt``).
- *Closed*: the next states lie within the ranges of the states again, and the states start inside.
  So the first statement holds in every step.
- *Lines*: what a line of the graph and a wire of the circuit have in common, such as a state before
  it fires, is proved first, and then cut out of both: any number of its range in its place.
- *Products*: multipliers are slow to compare, and so are cut out first. A product ``x y`` of
  the circuit and products ``a b`` of the graph get any values with ``x y = sum of 2^k a b``.
  That it does follows from ``x = sum of 2^k a`` and ``y = b``, a question for each, and from the
  law of distribution, one too; that the wire is the product of its factors is another.

Which lines and products belong together is found on samples, and is only a guess: z3 has the last
word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracetorch.export.c_code.stages import Array, Copy, Pointwise, StepProgram
from tracetorch.export.c_code.widths import Widths
from tracetorch.export.verilog_code.circuit import Circuit
from tracetorch.export.verilog_code.smt import (
    Case,
    Product,
    Read,
    Samples,
    StepFormula,
    Term,
    Truth,
    inside,
    literal,
    resized,
    signed_bits,
    within,
)
from tracetorch.export.verilog_code.wires import Wire, evaluated
from tracetorch.export.verilog_code.words import Word, whole_ends

_SAMPLES = 64
_LARGEST_SHIFT = 40
# Operations whose lines are cut out, with those of the wires that they may be.
_CUT = {
    "add": ("add", "sub"),
    "min": ("add", "mux", "part", "sub"),
    "trunc": ("add", "mux"),
    "where": ("add", "mux", "sub"),
}
_LEAST_BITS = 4  # of a line that is cut out

PROVE_SCRIPT = """\
#!/bin/sh
# Prove that each step of Verilog is the step of the model: a line for each proof.
# Needs yosys and z3. The exit status is 0 only if z3 finds no counterexample anywhere.
cd "$(dirname "$0")" || exit 1
for tool in yosys z3; do
    command -v "$tool" > /dev/null || { echo "prove: there is no $tool on this machine"; exit 1; }
done
mkdir -p build || exit 1
status=0
proofs=0
for script in *.ys; do
    yosys -q "$script" || { echo "FAILED  $script: yosys cannot read it"; exit 1; }
done
for question in *.smt2; do
    name=${question%%.*}
    rest=${question#*.}
    model=build/$name.${rest%%.*}.smt2
    [ -f "$model" ] || model=/dev/null
    answer=$(cat "$model" "$question" | z3 -in -T:${PROVE_SECONDS:-600} 2>&1)
    proofs=$((proofs + 1))
    if [ "$answer" = unsat ]; then
        echo "proved  $(sed -n 's/^; //p;q' "$question")"
    else
        echo "FAILED  $(sed -n 's/^; //p;q' "$question"): z3 says $answer, see proof/$question"
        status=1
    fi
done
[ "$proofs" -gt 0 ] || status=1
exit $status
"""


@dataclass(frozen=True)
class _Relation:
    """Guess that a product of the circuit is a sum of products of the graph, each ``2^k`` times."""

    wire: Wire
    swapped: bool  # whether its second factor is the one that is a sum
    terms: Sequence[tuple[Product, bool, int]]  # product, swapped, k


@dataclass(frozen=True)
class _Cut:
    """Guess that a wire of the circuit is each of some lines of the graph."""

    wire: Wire
    terms: Sequence[Term]


def proof_files(
    name: str, circuit: Circuit, stage: Pointwise, widths: Widths, program: StepProgram
) -> dict[str, str]:
    """Return the files of a folder ``proof`` for one step, by name, besides ``PROVE_SCRIPT``.

    Args:
        name: of the module, whose text is in ``../{name}.v``.
        circuit: of the stage.
        stage: of the program.
        widths: the ranges of its arrays.
        program: whose states the stage may write.
    """
    return _Proofs(name, circuit, stage, widths, program).files()


def next_states(program: StepProgram, stage: Pointwise) -> dict[str, tuple[str, Array]]:
    """Return the states that a stage computes, by the name of what it writes: name and array."""
    states = {array: name for name, array in program.states.items()}
    into = {each: each for each in states}
    for other in program.stages:
        if isinstance(other, Copy) and other.target.array in states and other.places is None:
            into.setdefault(other.source.array, other.target.array)
    found = {name: into.get(view.array) for name, view in stage.writes.items()}
    return {name: (states[array], array) for name, array in found.items() if array is not None}


class _Proofs:
    """Questions about one step."""

    def __init__(
        self, name: str, circuit: Circuit, stage: Pointwise, widths: Widths, program: StepProgram
    ) -> None:
        self.name, self.circuit, self.stage = name, circuit, stage
        self.widths, self.program = widths, program
        self.samples = _samples(circuit, stage, widths)
        self.reads = {
            each: _read(circuit, stage, widths, each, self.samples) for each in stage.reads
        }
        self.formula = StepFormula(stage, self.reads, single=not program.double)
        self.relations = list(self._relations())
        self.cuts = list(self._cuts())

    def files(self) -> dict[str, str]:
        """Return the files."""
        products = " ".join(f"w:n{each.wire.number}" for each in self.relations)
        script = [
            f"read_verilog ../{self.name}.v",
            f"hierarchy -check -top {self.name}",
            "proc",
            f"write_smt2 -wires build/{self.name}.whole.smt2",
            *([f"cutpoint {products}"] if products else []),
            f"write_smt2 -wires build/{self.name}.cut0.smt2",
        ]
        for place, cut in enumerate(self.cuts, 1):
            script.append(f"cutpoint w:n{cut.wire.number}")
            script.append(f"write_smt2 -wires build/{self.name}.cut{place}.smt2")
        files = {f"{self.name}.ys": "\n".join(script) + "\n"}
        for kind, label, what, text in self.questions():
            lines = [f"; {self.name}: {what}", text, "(check-sat)", ""]
            files[f"{self.name}.{kind}.{label}.smt2"] = "\n".join(lines)
        return files

    def questions(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield kind, label and words of each question, and its text."""
        for relation in self.relations:
            number = relation.wire.number
            yield (
                "whole",
                f"n{number}_product",
                f"n{number} is a product",
                self.is_product(relation),
            )
            what = f"the factors of n{number} are those of the graph"
            cuts = self.before(number)
            yield f"cut{len(cuts)}", f"n{number}_factors", what, self.factors(relation, cuts)
            ends = [(a.low, a.high) for a in relation.wire.args]
            what = f"a product of such factors is in the range of n{number}"
            text = _range(ends[0], ends[1], _product_ends(relation.wire))
            yield "plain", f"n{number}_range", what, text
        for k in sorted(
            {t[2] for each in self.relations if len(each.terms) > 1 for t in each.terms}
        ):
            if k:
                yield "plain", f"law_{k}", "a product of a sum is a sum of products", _law(k)
        for place, cut in enumerate(self.cuts):
            number = cut.wire.number
            what, before = f"n{number} is a line of the graph", self.cuts[:place]
            for term in cut.terms:
                for case in self.cases(before, term):
                    label = f"n{number}_{term.text}{_label(case)}"
                    text = self.line(cut.wire, term, before, case)
                    yield f"cut{place}", label, what + _words(case), text
        for name in self.stage.writes:
            what = f"{name} is that of the graph"
            for case in self.cases(self.cuts, None):
                kind, label = f"cut{len(self.cuts)}", f"{name}_equal{_label(case)}"
                yield kind, label, what + _words(case), self.equal(name, case)
        for name, (state, array) in next_states(self.program, self.stage).items():
            yield "plain", f"{name}_closed", f"{state} stays in its range", self.closed(name, array)
            yield "plain", f"{name}_start", f"{state} starts in its range", self.starts(array)

    # Texts

    def module(self, wire: str, bits: int) -> str:
        """Return a wire of the Verilog as a bit vector."""
        text = f"(|{self.name}_n {wire}| s)"
        return f"(ite {text} #b1 #b0)" if bits == 1 else text

    def preamble(self, module: bool) -> str:
        """Return what is read: from the ports of the module, or anything of its range."""
        lines = [f"(declare-const s |{self.name}_s|)"] if module else []
        for name, read in self.reads.items():
            word, bits = self.circuit.reads[name], signed_bits(read.low, read.high)
            kind = "Bool" if read.truth else f"(_ BitVec {bits})"
            if not module:
                lines.append(f"(declare-const {read.text} {kind})")
            elif read.truth:
                port = self.module(self.circuit.port_names[name], 1)
                lines.append(f"(define-fun {read.text} () Bool (= {port} #b1))")
            else:
                value = self.port(name, word)
                part = f"((_ extract {bits - 1} 0) {value.text})"
                lines.append(f"(define-fun {read.text} () {kind} {part})")
                lines.append(f"(assert (= {value.text} {resized(_term(read), value.bits)}))")
            lines += within(_term(read)) if not read.truth else []
            if read.powers:
                some = " ".join(f"(= {read.text} {literal(1 << k, bits)})" for k in read.powers)
                lines.append(f"(assert (or {some}))")
        return "\n".join(lines)

    def port(self, name: str, word: Word) -> Term:
        """Return the number of a port of the Verilog, in one bit more than it has."""
        text = self.module(self.circuit.port_names[name], word.bits)
        extend = "sign_extend" if word.signed else "zero_extend"
        # a term as wide as this, whatever the range
        ends = 1 << word.bits
        return Term(f"((_ {extend} 1) {text})", -ends, ends - 1, None)

    def before(self, number: int) -> list[_Cut]:
        """Return the cuts at wires before one."""
        return [each for each in self.cuts if each.wire.number < number]

    def graph(self, cuts: Sequence[_Cut], case: Case | None = None) -> str:
        """Return the definitions of the graph; products that are related are free, and cuts."""
        free = [product for each in self.relations for product, _, _ in each.terms]
        return self.formula.text(free, [term for each in cuts for term in each.terms], case)

    def is_line(self, wire: Wire, term: Term) -> str:
        """Return that a wire is a line of the graph, and in its range."""
        word = wire.word
        extend = "sign_extend" if word.signed else "zero_extend"
        bits = max(word.bits + 1, term.bits)
        value = self.module(f"n{wire.number}", word.bits)
        value = f"((_ {extend} {bits - word.bits}) {value})"
        ends = (f"(bvsle {literal(wire.low, bits)} {value})", literal(wire.high, bits))
        return f"(and (= {value} {resized(term, bits)}) {ends[0]} (bvsle {value} {ends[1]}))"

    def line(self, wire: Wire, term: Term, before: Sequence[_Cut], case: Case | None) -> str:
        """Ask whether a wire is a line of the graph."""
        known = [each for each in self.relations if each.wire.number < wire.number]
        parts = [self.preamble(True), self.graph(before, case), self.related(known, before)]
        return "\n".join([*parts, f"(assert (not {self.is_line(wire, term)}))"])

    def related(self, relations: Sequence[_Relation], cuts: Sequence[_Cut]) -> str:
        """Return what is known of the products of the circuit, and of what is cut."""
        lines = [f"(assert {self.is_line(c.wire, term)})" for c in cuts for term in c.terms]
        for relation in relations:
            bits = relation.wire.word.bits
            total = _sum([(product.result, k) for product, _, k in relation.terms], bits)
            lines.append(f"(assert (= {self.module(f'n{relation.wire.number}', bits)} {total}))")
            wire, ends = relation.wire, _product_ends(relation.wire)
            lines += [f"(assert {each})" for each in self.between(wire, "", *ends)]
        return "\n".join(lines)

    def between(self, wire: Wire, end: str, low: int, high: int) -> list[str]:
        """Return that a product of the circuit, or a factor of it, lies in a range.

        As the numbers that their bits are: with a sign where a factor has one.
        """
        bits, least = wire.word.bits, min(arg.low for arg in wire.args)
        number = Word(bits, signed=least < 0)
        if not (number.low <= low and high <= number.high):
            return []
        order = "bvsle" if least < 0 else "bvule"
        value = self.module(f"n{wire.number}{end and '_'}{end}", bits)
        ends = literal(low, bits), literal(high, bits)
        return [f"({order} {ends[0]} {value})", f"({order} {value} {ends[1]})"]

    def is_product(self, relation: _Relation) -> str:
        """Ask whether a wire is the product of its factors."""
        number, bits = relation.wire.number, relation.wire.word.bits
        wire, one, other = (self.module(f"n{number}{end}", bits) for end in ("", "_x", "_y"))
        lines = [f"(declare-const s |{self.name}_s|)"]
        return "\n".join([*lines, f"(assert (distinct {wire} (bvmul {one} {other})))"])

    def factors(self, relation: _Relation, cuts: Sequence[_Cut]) -> str:
        """Ask whether factors are those of the graph: one a sum, the other the same for all."""
        number, bits = relation.wire.number, relation.wire.word.bits
        one, other = (self.module(f"n{number}{end}", bits) for end in ("_x", "_y"))
        if relation.swapped:
            one, other = other, one
        pairs = [
            ((p.other, p.one) if swap else (p.one, p.other), k) for p, swap, k in relation.terms
        ]
        total = _sum([(a, k) for (a, _), k in pairs], bits)
        same = [f"(= {other} {resized(b, bits)})" for (_, b), _ in pairs]
        ranges = [
            each
            for end, arg in zip("xy", relation.wire.args, strict=True)
            for each in self.between(relation.wire, end, arg.low, arg.high)
        ]
        before = [each for each in self.relations if each.wire.number < number]
        return "\n".join(
            [
                self.preamble(True),
                self.graph(cuts),
                self.related(before, cuts),
                f"(assert (not (and (= {one} {total}) {' '.join([*same, *ranges])})))",
            ]
        )

    def equal(self, name: str, case: Case | None) -> str:
        """Ask whether an output is that of the graph."""
        word, found = self.circuit.writes[name], self.formula.outputs[name]
        if isinstance(found, Truth):
            port = self.module(self.circuit.port_names[name], 1)
            same = f"(= {port} (ite {found.text} #b1 #b0))"
        else:
            port_term, k = self.port(name, word), found.point
            bits = max(port_term.bits + k, found.bits)
            value = f"(bvshl {resized(port_term, bits)} {literal(k, bits)})"
            same = f"(= {value} {resized(found, bits)})"
        parts = [self.preamble(True), self.graph(self.cuts, case)]
        parts.append(self.related(self.relations, self.cuts))
        return "\n".join([*parts, f"(assert (not {same}))"])

    def cases(self, cuts: Sequence[_Cut], until: Term | None) -> Sequence[Case | None]:
        """Return each value of a quotient between the last cut and a line: one question is slow."""
        after = max((term.number for cut in cuts for term in cut.terms), default=-1)
        for few in self.formula.few:
            if after < few.term.number and (until is None or few.term.number <= until.number):
                return [Case(few, value) for value in range(few.term.low, few.term.high + 1)]
        return [None]

    def closed(self, name: str, array: Array) -> str:
        """Ask whether a state's next value is within the range of the state."""
        found = self.formula.outputs[name]
        if isinstance(found, Truth):
            return "(assert false)"
        low, high = (end << found.point for end in _ends(self.widths, array))
        ends = " ".join(inside(found, low, high))
        free = self.formula.text(self.formula.products)
        return "\n".join([self.preamble(False), free, f"(assert (not (and {ends})))"])

    def starts(self, array: Array) -> str:
        """Ask whether what a state starts from is within its range."""
        low, high = _ends(self.widths, array)
        least, most = int(array.values.min()), int(array.values.max())
        return f"(assert (not (and (<= {_int(low)} {_int(least)}) (<= {_int(most)} {_int(high)}))))"

    # Guesses

    def _relations(self) -> Iterator[_Relation]:
        """Yield what products of the graph each product of the circuit may be."""
        products = [wire for wire in self.circuit.wires if wire.op == "mul"]
        ends = {f"{w.number}{i}": arg for w in products for i, arg in enumerate(w.args)}
        values = evaluated(ends, self.samples)
        for wire in products:
            sides = [values[f"{wire.number}{i}"] for i in (0, 1)]
            for swapped in (False, True):
                terms = self._terms(*(sides[::-1] if swapped else sides))
                if terms:
                    yield _Relation(wire, swapped, terms)
                    break

    def _cuts(self) -> Iterator[_Cut]:
        """Yield lines that are choices, such as what saturates, and the wires that they may be."""
        wires = [wire for wire in self.circuit.wires if wire.op in ("mux", "part", "add", "sub")]
        values = evaluated({str(wire.number): wire for wire in wires}, self.samples)
        found: dict[int, dict[str, Term]] = {}
        for line in self.stage.graph.lines:
            term = self.formula.values.get(line.name)  # none of a quotient on its way
            # of a range that is cut off at both ends, the second line
            if line.op not in _CUT or not isinstance(term, Term):
                continue
            if term.point or term.divisor or term.bits < _LEAST_BITS or term.number < 0:
                continue
            for wire in reversed(wires):
                as_wide = signed_bits(wire.low, wire.high) == term.bits
                if (
                    as_wide
                    and wire.op in _CUT[line.op]
                    and _same(values[str(wire.number)], term.samples)
                ):
                    found.setdefault(wire.number, {})[line.name] = term
                    break
        by_number, last = {wire.number: wire for wire in wires}, -1
        for number, terms in sorted(found.items()):
            seen = self._seen(terms)
            # in the order of the graph too, so that each line depends on none that is cut later
            if seen and min(term.number for term in seen) > last:
                yield _Cut(by_number[number], seen)
                last = max(term.number for term in seen)

    def _seen(self, lines: Mapping[str, Term]) -> Sequence[Term]:
        """Return of equal lines those that others read."""
        graph = self.stage.graph
        seen = {value for value in graph.outputs.values() if isinstance(value, str)}
        for line in graph.lines:
            if line.name not in lines:
                seen.update(arg for arg in line.args if isinstance(arg, str))
        return list({term.text: term for name, term in lines.items() if name in seen}.values())

    def _terms(self, one: Samples, other: Samples) -> Sequence[tuple[Product, bool, int]]:
        """Return products of the graph with a factor in common, whose other factors sum to one."""
        fitting: list[tuple[Product, bool, Samples]] = []
        for product in self.formula.products:
            for swap in (False, True):
                a, b = (product.other, product.one) if swap else (product.one, product.other)
                if _same(b.samples, other):
                    fitting.append((product, swap, a.samples))
        for product, swap, a in fitting:
            if _same(a, one):
                return [(product, swap, 0)]
        for high, high_swap, a in fitting:
            for low, low_swap, b in fitting:
                for k in range(1, _LARGEST_SHIFT):
                    if _same(a * 2**k + b, one):
                        return [(high, high_swap, k), (low, low_swap, 0)]
        return []


def _label(case: Case | None) -> str:
    return "" if case is None else f"_{case.value}"


def _words(case: Case | None) -> str:
    return "" if case is None else f" where a quotient is {case.value}"


def _same(one: Samples, other: Samples) -> bool:
    return bool(np.all(np.equal(one, other)))


def _ends(widths: Widths, array: Array) -> tuple[int, int]:
    return (
        (0, 1) if array.boolean else whole_ends(widths.ranges[array], widths.points.get(array, 0))
    )


def _samples(circuit: Circuit, stage: Pointwise, widths: Widths) -> dict[str, Samples]:
    """Draw values of what a step reads, extremes among them."""
    random, drawn = np.random.default_rng(0), dict[str, Any]()
    for name, view in stage.reads.items():
        low, high = _ends(widths, view.array)
        values = [int(random.integers(low, high, endpoint=True)) for _ in range(_SAMPLES)]
        for place, end in enumerate((low, high, low, high)):
            values[int(random.integers(_SAMPLES)) if place > 1 else place] = end
        if name in circuit.powers:
            values = [1 << int(k) for k in random.choice(circuit.powers[name], _SAMPLES)]
        drawn[name] = np.array(values, dtype=object)
    return drawn


def _read(
    circuit: Circuit, stage: Pointwise, widths: Widths, name: str, samples: Mapping[str, Samples]
) -> Read:
    array = stage.reads[name].array
    low, high = _ends(widths, array)
    point = widths.points.get(array, 0)
    powers = circuit.powers.get(name, ())
    text = circuit.port_names[name]
    return Read(text, low, high, samples[name], point, array.boolean, powers)


def _term(read: Read) -> Term:
    return Term(read.text, read.low, read.high, read.samples)


def _sum(terms: Sequence[tuple[Term, int]], bits: int) -> str:
    """Return the sum of numbers times ``2^k``, modulo ``2^bits``."""
    parts = [f"(bvshl {resized(term, bits)} {literal(k, bits)})" for term, k in terms]
    return parts[0] if len(parts) == 1 else f"(bvadd {' '.join(parts)})"


def _law(k: int) -> str:
    """Ask for integers of which ``(a 2^k + b) y`` is not ``2^k (a y) + b y``."""
    names = "".join(f"(declare-const {name} Int)" for name in "aby")
    return f"{names}\n(assert (distinct (* (+ (* {2**k} a) b) y) (+ (* {2**k} (* a y)) (* b y))))"


def _product_ends(wire: Wire) -> tuple[int, int]:
    """Return the range of a product by those of its factors."""
    one, other = wire.args
    ends = [a * b for a in (one.low, one.high) for b in (other.low, other.high)]
    return min(ends), max(ends)


def _range(one: tuple[int, int], other: tuple[int, int], product: tuple[int, int]) -> str:
    """Ask for factors within their ranges whose product is not within its own."""
    lines = ["(declare-const x Int)(declare-const y Int)"]
    for name, (low, high) in (("x", one), ("y", other)):
        lines.append(f"(assert (and (<= {_int(low)} {name}) (<= {name} {_int(high)})))")
    least, most = map(_int, product)
    return "\n".join([*lines, f"(assert (not (and (<= {least} (* x y)) (<= (* x y) {most}))))"])


def _int(value: int) -> str:
    return str(value) if value >= 0 else f"(- {-value})"
