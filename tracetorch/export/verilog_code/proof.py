"""``proof_files``: what yosys and z3 need to prove a printed step equal to its graph, for ever.

Three kinds of questions, each in a file of its own; z3's answer ``unsat`` is: no counterexample.

- *Equal*: for everything that a step may read within the proved ranges, an output of the Verilog,
  as yosys reads it, is that of the graph (``smt``).
- *Closed*: the next states lie within the ranges of the states again, and the states start inside.
  So the first statement holds in every step.
- *Lines*: what a line of the graph and a wire of the circuit have in common, such as a state before
  it fires or the rest of a long division, is proved first. Then the wire is cut out, any number of
  its range in its place, and the line is that wire: both sides go on from the same.
- *Products*: multipliers are slow to compare, and so are cut out first. A product ``x y`` of
  the circuit and products ``a b`` of the graph get any values with ``x y = sum of 2^k a b``.
  That it does follows from ``x = sum of 2^k a`` and ``y = b``, a question for each, and from the
  law of distribution, one too; that the wire is the product of its factors is another.

Which lines and products belong together is found on samples, and is only a guess; and with a cut a
question asks for more than is needed. So what z3 does not prove with cuts the script asks again
with fewer; a cut of which that is not proved at all is no longer made. Only of a question without
any cut a counterexample is one, and is printed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracetorch.export.c_code.files import comment
from tracetorch.export.c_code.stages import Array, Copy, Pointwise, StepProgram
from tracetorch.export.c_code.widths import Widths
from tracetorch.export.verilog_code.circuit import Circuit
from tracetorch.export.verilog_code.smt import (
    Product,
    Read,
    Samples,
    StepFormula,
    Term,
    Truth,
    defined,
    if_cut,
    inside,
    literal,
    resized,
    signed_bits,
    within,
)
from tracetorch.export.verilog_code.wires import Wire, Word, evaluated, whole_ends

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

PROVE_SCRIPT = r"""#!/bin/sh
# Prove that each step of Verilog is the step of the model: a line for each proof.
# Needs yosys and z3. The exit status is 0 only if everything is proved.
# A question cuts out what was proved before. What is not proved so is asked again with fewer cuts;
# a cut that is not proved, in a minute, is not made, and only without cuts an answer is a
# counterexample.
cd "$(dirname "$0")" || exit 1
for tool in yosys z3; do
    command -v "$tool" > /dev/null || { echo "prove: there is no $tool on this machine"; exit 1; }
done
mkdir -p build || exit 1
seconds=${PROVE_SECONDS:-600}
status=0
proofs=0
step=
built=

# Print what the question says of itself.
says() {
    sed -n "s/^; $1: *//p;/^[^;]/q" "$question"
}

# Put the question with $cuts to z3, and its lines with a mark too; after it in build/question.smt2.
ask() {
    edit=
    points=
    for cut in $cuts; do
        edit="$edit;s/^;=$cut //;/^;!$cut /d"
        points="$points w:n$cut"
    done
    : > build/question.smt2
    if [ -n "$module" ]; then
        if [ "$built" != "$module$points" ]; then
            yosys -q -p "read_verilog ../$module.v; hierarchy -check -top $module; proc
                ${points:+cutpoint$points}
                write_smt2 -wires build/module.smt2" < /dev/null ||
                { echo "FAILED  $module: yosys cannot read it"; exit 1; }
            built="$module$points"
        fi
        cat build/module.smt2 > build/question.smt2
    fi
    sed "$edit;s/^;![^ ]* //;s/^;$1 //" "$question" >> build/question.smt2
    answer=$(z3 -T:"$limit" build/question.smt2 2>&1)
}

set -- *.smt2
if [ ! -e "$1" ] && [ ! -e ../step_0.v ]; then
    echo "prove: there is no neuron, and so no step to prove"
    exit 0
fi
for question in "$@"; do
    [ "${question%%.*}" = "$step" ] || dropped=" "
    step=${question%%.*}
    module=$(says module)
    lemma=$(says lemma)
    what=$(says proof)
    limit=$seconds
    [ -z "$lemma" ] || limit=$((seconds < 60 ? seconds : 60))
    case "$dropped" in *" $lemma "*) continue ;; esac
    cuts=
    for cut in $(says cuts); do
        case "$dropped" in *" $cut "*) ;; *) cuts="$cuts $cut" ;; esac
    done
    ask -
    while [ -n "$cuts" ]; do
        case "$answer" in
            sat) cuts=${cuts% *} ;;
            timeout | unknown) [ -z "$lemma" ] || break; cuts= ;;
            *) break ;;
        esac
        ask -
    done
    proofs=$((proofs + 1))
    case "$answer" in
        unsat) echo "proved  $what" ;;
        sat | timeout | unknown)
            if [ -n "$lemma" ]; then
                dropped="$dropped$lemma "
                echo "left    $what: z3 says $answer, so the proofs do without"
            elif [ "$answer" = sat ]; then
                echo "FAILED  $what: z3 has a counterexample, see proof/$question"
                ask "?"
                echo "$answer" | sed "1d;s/(- \([0-9]*\))/-\1/" | sed "N;s/\n/ = /;s/^/        /"
                status=1
            else
                echo "OPEN    $what: z3 says $answer, see proof/$question and set PROVE_SECONDS"
                status=1
            fi ;;
        *)
            echo "FAILED  $what: z3 says $answer, see proof/$question"
            status=1 ;;
    esac
done
[ "$proofs" -gt 0 ] || status=1
exit $status
"""


@dataclass(frozen=True)
class _Question:
    """Question to z3, which answers ``unsat`` if what it is about is proved."""

    label: str
    what: str  # in words
    text: str
    cuts: str = ""  # names of what it can do without knowing more of
    lemma: str = ""  # name of the cut that is made if it is proved
    shown: Sequence[str] = ()  # what prints a counterexample


@dataclass(frozen=True)
class _Guess:
    wire: Wire

    @property
    def name(self) -> str:
        """Its name in questions."""
        return str(self.wire.number)


@dataclass(frozen=True)
class _Relation(_Guess):
    """Guess that a product of the circuit is a sum of products of the graph, each ``2^k`` times."""

    swapped: bool  # whether its second factor is the one that is a sum
    terms: Sequence[tuple[Product, bool, int]]  # product, swapped, k


@dataclass(frozen=True)
class _Cut(_Guess):
    """Guess that a wire of the circuit is each of some lines of the graph."""

    terms: Sequence[Term]


def proof_files(
    name: str, circuit: Circuit, stage: Pointwise, widths: Widths, program: StepProgram
) -> dict[str, str]:
    """Return the files of a folder ``proof`` for the step ``../{name}.v``, but ``PROVE_SCRIPT``."""
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
        self.lines, self.samples = stage.graph.lines, _samples(circuit, stage, widths)
        self.reads = {
            each: _read(circuit, stage, widths, each, self.samples) for each in stage.reads
        }
        self.formula = StepFormula(stage, self.reads, single=not program.double)
        self.relations = list(self._relations())
        self.cuts = list(self._cuts())

    def files(self) -> dict[str, str]:
        """Return the files: a question each, in order."""
        files = {}
        for place, each in enumerate(self.questions()):
            lines = [f"; proof: {comment(f'{self.name}: {each.what}')}"]
            lines += [f"; module: {self.name}"] * ("|" in each.text)
            lines += [f"; lemma: {each.lemma}"] * bool(each.lemma)
            lines += [f"; cuts: {each.cuts}"] * bool(each.cuts)
            lines += [each.text, "(check-sat)", *(f";? {line}" for line in each.shown), ""]
            files[f"{self.name}.{place:04}.{each.label}.smt2"] = "\n".join(lines)
        return files

    def questions(self) -> Iterator[_Question]:
        """Yield the questions: of every cut, in the order of the wires, then of every output."""
        for cut in self.before():
            if isinstance(cut, _Relation):
                yield from self.product_questions(cut)
                continue
            before, name = self.before(cut.wire.number), f"n{cut.wire.number}"
            for term in cut.terms:
                text = f"{self.known(before)}\n{_unless(self.is_line(cut.wire, term))}"
                what, label = f"{name} is a line of the graph", f"{name}_{term.text}"
                yield _Question(label, what, text, _names(before), cut.name)
        every = self.before()
        for name in self.stage.writes:
            same, shown = self.equal(name)
            what, text = f"{self.label(name)} is that of the graph", self.known(every)
            text = f"{text}\n{_unless(same)}"
            yield _Question(f"{name}_equal", what, text, _names(every), shown=shown)
        for name, (state, array) in next_states(self.program, self.stage).items():
            yield self.closed(name, state, array)
            what, text = f"{state} starts in its range", self.starts(array)
            yield _Question(f"{name}_start", what, text)

    def product_questions(self, relation: _Relation) -> Iterator[_Question]:
        """Yield what has to hold for a product of the circuit to be products of the graph."""
        name, wire = f"n{relation.wire.number}", relation.wire
        before, of = self.before(wire.number), relation.name
        text = self.is_product(relation)
        yield _Question(f"{name}_product", f"{name} is a product", text, lemma=of)
        what, text = f"the factors of {name} are those of the graph", self.factors(relation)
        yield _Question(f"{name}_factors", what, text, _names(before), of)
        ends = [(arg.low, arg.high) for arg in wire.args]
        what = f"a product of such factors is in the range of {name}"
        text = _range(ends[0], ends[1], _product_ends(wire))
        yield _Question(f"{name}_range", what, text, lemma=of)
        if len(relation.terms) > 1:
            what = "a product of a sum is a sum of products"
            yield _Question(f"{name}_law", what, _law(relation.terms[0][2]), lemma=of)

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
        """Return the number of a port of the Verilog."""
        return self.number(self.circuit.port_names[name], word)

    def number(self, name: str, word: Word) -> Term:
        """Return the number of a wire of the Verilog, in one bit more than it has."""
        extend = "sign_extend" if word.signed else "zero_extend"
        # a term as wide as this, whatever the range
        ends = 1 << word.bits
        return Term(f"((_ {extend} 1) {self.module(name, word.bits)})", -ends, ends - 1, None)

    def before(self, number: float = math.inf) -> list[_Cut | _Relation]:
        """Return what is cut out at wires before one."""
        every: list[_Cut | _Relation] = [*self.relations, *self.cuts]
        before = [each for each in every if each.wire.number < number]
        return sorted(before, key=lambda each: each.wire.number)

    def known(self, cuts: Sequence[_Cut | _Relation]) -> str:
        """Return what is read, the definitions of the graph, and what is known of cuts."""
        instead: dict[str, tuple[str, Sequence[str]]] = {}
        for each in cuts:
            for term, lines in self.replaced(each):
                instead.setdefault(term.text, (each.name, lines))
        parts = [self.preamble(True), self.formula.text(instead)]
        for each in cuts:
            parts += [if_cut(each.name, f"(assert {one})") for one in self.statements(each)]
        return "\n".join(parts)

    def replaced(self, cut: _Cut | _Relation) -> list[tuple[Term, Sequence[str]]]:
        """Return what numbers of the graph are where a wire is cut out: that wire, or any."""
        if isinstance(cut, _Relation):
            return [(product.term, product.free) for product, _, _ in cut.terms]
        number = self.number(f"n{cut.wire.number}", cut.wire.word)
        return [(term, [defined(term, resized(number, term.bits))]) for term in cut.terms]

    def statements(self, cut: _Cut | _Relation) -> list[str]:
        """Return what is proved of a wire that is cut out."""
        if isinstance(cut, _Cut):
            number = self.number(f"n{cut.wire.number}", cut.wire.word)
            return inside(number, cut.wire.low, cut.wire.high)
        wire, bits = cut.wire, cut.wire.word.bits
        total = _sum([(product.term, k) for product, _, k in cut.terms], bits)
        same = f"(= {self.module(f'n{wire.number}', bits)} {total})"
        return [same, *self.between(wire, "", *_product_ends(wire))]

    def is_line(self, wire: Wire, term: Term) -> str:
        """Return that a wire is a line of the graph, and in its range."""
        number = self.number(f"n{wire.number}", wire.word)
        bits = max(number.bits, term.bits)
        same = f"(= {resized(number, bits)} {resized(term, bits)})"
        return f"(and {same} {' '.join(inside(number, wire.low, wire.high))})"

    def between(self, wire: Wire, end: str, low: int, high: int) -> list[str]:
        """Return that a product or factor of the circuit, a number of its sign, is in a range."""
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

    def factors(self, relation: _Relation) -> str:
        """Ask whether factors are those of the graph: one a sum, the other the same for all."""
        number, bits = relation.wire.number, relation.wire.word.bits
        one, other = (self.module(f"n{number}{end}", bits) for end in ("_x", "_y"))
        if relation.swapped:
            one, other = other, one
        pairs = [
            ((p.other, p.one) if swap else (p.one, p.other), k) for p, swap, k in relation.terms
        ]
        total = _sum([(a, k) for (a, _), k in pairs], bits)
        statements = [
            f"(= {one} {total})",
            *(f"(= {other} {resized(b, bits)})" for (_, b), _ in pairs),
        ]
        for end, arg in zip("xy", relation.wire.args, strict=True):
            statements += self.between(relation.wire, end, arg.low, arg.high)
        return f"{self.known(self.before(number))}\n{_unless(*statements)}"

    def equal(self, name: str) -> tuple[str, list[str]]:
        """Return that an output is that of the graph, and what prints a counterexample."""
        word, found = self.circuit.writes[name], self.formula.outputs[name]
        port = self.port(name, word)
        if isinstance(found, Truth):
            text, wanted = port.text, f"(ite {found.text} 1 0)"
            same = f"(= {text} (ite {found.text} {literal(1, port.bits)} {literal(0, port.bits)}))"
        else:
            k = found.point
            bits = max(port.bits + k, found.bits)
            value = f"(bvshl {resized(port, bits)} {literal(k, bits)})"
            same = f"(= {value} {resized(found, bits)})"
            wanted = f"(div {_integer(found)} {1 << k})"
        label = self.label(name)
        shown = {f"{label} of the circuit": _integer(port), f"{label} of the graph": wanted}
        return same, self.shown(shown)

    def label(self, name: str) -> str:
        """Return words for what is read or written."""
        port, view = self.circuit.port_names[name], {**self.stage.reads, **self.stage.writes}[name]
        ends = {array: end for end, array in self.program.ends.items()}
        state = next_states(self.program, self.stage).get(name)
        known = f"the next {state[0]}" if state else ends.get(view.array, view.array.label)
        return f"{port} ({known})" if known else port

    def shown(self, more: Mapping[str, str]) -> list[str]:
        """Return what prints, of a counterexample, what is read and more numbers."""
        values = {
            self.label(name): read.text if read.truth else _integer(_term(read))
            for name, read in self.reads.items()
        }
        pairs = [
            (f'(echo "{comment(each)}")', f"(eval {text})")
            for each, text in {**values, **more}.items()
        ]
        return [line for pair in pairs for line in pair]

    def closed(self, name: str, state: str, array: Array) -> _Question:
        """Ask whether a state's next value is within the range of the state."""
        found, what = self.formula.outputs[name], f"{state} stays in its range"
        if isinstance(found, Truth):
            return _Question(f"{name}_closed", what, "(assert false)")
        low, high = (end << found.point for end in _ends(self.widths, array))
        free = {each.term.text: ("products", each.free) for each in self.formula.products}
        parts = [self.preamble(False), self.formula.text(free)]
        text = "\n".join([*parts, _unless(*inside(found, low, high))])
        shown = self.shown({f"{state} after it": f"(div {_integer(found)} {1 << found.point})"})
        return _Question(f"{name}_closed", what, text, "products" if free else "", shown=shown)

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
        lines = [(line.name, line.op, self.formula.values[line.name]) for line in self.lines]
        rests = [(name, "where", term) for name, term in self.formula.rests.items()]
        for name, op, term in [*lines, *rests]:
            # of a range that is cut off at both ends, the second line
            if op not in _CUT or not isinstance(term, Term):
                continue
            if term.point or term.divisor or term.bits < _LEAST_BITS or term.number < 0:
                continue
            for wire in reversed(wires):
                as_wide = signed_bits(wire.low, wire.high) == term.bits
                if (
                    as_wide
                    and wire.op in _CUT[op]
                    and _same(values[str(wire.number)], term.samples)
                ):
                    found.setdefault(wire.number, {})[name] = term
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
        outputs = self.stage.graph.outputs.values()
        seen = {*self.formula.rests, *(value for value in outputs if isinstance(value, str))}
        for line in self.lines:
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


def _names(cuts: Sequence[_Cut | _Relation]) -> str:
    return " ".join(each.name for each in cuts)


def _unless(*statements: str) -> str:
    """Ask for what does not have all of some properties."""
    return f"(assert (not (and {' '.join(statements)})))"


def _integer(term: Term) -> str:
    """Return a bit vector as a number with a sign."""
    sign = f"(bvslt {term.text} {literal(0, term.bits)})"
    return f"(- (bv2int {term.text}) (ite {sign} {1 << term.bits} 0))"


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
