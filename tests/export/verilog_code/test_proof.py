"""Proofs: z3 finds no counterexample of a printed step, and finds one of each planted fault."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases import few
from tests.export.verilog_code.steps import (
    LEAKS,
    leaky,
    needs,
    proved,
    random_step,
    step_of,
    xylo,
)
from tests.export.verilog_code.test_circuit import CASES, SPANS
from tracetorch import integers
from tracetorch.export.verilog_code import peephole
from tracetorch.export.verilog_code.proof import _Proofs
from tracetorch.export.verilog_code.smt import Term, Truth
from tracetorch.export.verilog_code.step_module import step_module
from tracetorch.fuse.ir.intervals import Interval

SHORT = ["Multiplier(bits=8, rounding='trunc')", "Shift(rounding='at_least_one')"]


@needs("yosys", "z3")
@pytest.mark.parametrize("case", few(CASES, *SHORT))
def test_every_step_is_proved(case: str, tmp_path: Path) -> None:
    assert proved(step_of(CASES[case](), span=SPANS.get(case, (-100, 100))), tmp_path) == []


@needs("yosys", "z3")
@pytest.mark.slow
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("leak", LEAKS, ids=str)
def test_synapse_and_recurrence_are_proved(leak: Any, overflow: Any, tmp_path: Path) -> None:
    assert proved(step_of(leaky(leak, "RS", "BLIF", overflow=overflow)), tmp_path) == []


@needs("yosys", "z3")
@pytest.mark.parametrize("seed", few(range(20), 6))
def test_random_steps_are_proved(seed: int, tmp_path: Path) -> None:
    # of steps 2 and 6 lines that are cut out leave too little known of others
    assert proved(step_of(random_step(seed), double=True), tmp_path) == []


def _wrapping() -> Any:
    return leaky(LEAKS[0], overflow="wrap", state_bits=10)


# What a printer may do wrong: in the text, first found and replaced.
FAULTS = {
    "a sign is extended by zeros": (r"\{\{(\d+)\{\w+\[\d+\]\}\}, ", r"{\1'd0, "),
    "the factor of a product is extended by zeros": (
        r"(n\d+_x = )\{\{(\d+)\{\w+\[\d+\]\}\}, ",
        r"\1{\2'd0, ",
    ),
    "a comparison ignores signs": (r"\$signed\((.*?)\) < \$signed\((.*?)\);", r"\1 < \2;"),
    "less is less or equal": (r" < ", " <= "),
    "a choice is the other way round": (r"\? (.*) : (.*);", r"? \2 : \1;"),
    "a sum is a difference": (r" \+ ", " - "),
    "a product is a sum": (r"_x \* n", "_x + n"),
    "a part is one bit lower": (r"\[9:0\]", "[10:1]"),
    "a constant is one more": (r"8'd0;", "8'd1;"),
    "an output is the opposite": (r"assign (w_\w+) = (n\d+);", r"assign \1 = ~\2;"),
}

FEW_FAULTS = ("a comparison ignores signs", "a sum is a difference", "a part is one bit lower")


@needs("yosys", "z3")
@pytest.mark.parametrize("fault", few(FAULTS, *FEW_FAULTS))
def test_faults_of_the_printer_are_found(fault: str, tmp_path: Path) -> None:
    pattern, replacement = FAULTS[fault]
    step = step_of(_wrapping(), span=(-3000, 3000))
    text = step_module("step", step.circuit)
    changed = re.sub(pattern, replacement, text, count=1)
    assert changed != text
    assert proved(step, tmp_path, changed)


# What a rule may do wrong.
WRONG_RULES: dict[str, tuple[str, Any]] = {
    "wrapping keeps no sign": ("part", lambda w, args, k: w.make("low", args[0], k=k)),
    "towards zero is down": ("cut", lambda w, args, k: w.make("shr", args[0], k=k)),
    "a choice is its first side": ("mux", lambda w, args, k: args[1]),
    "opposite is dropped": ("not", lambda w, args, k: args[0]),
}


@needs("yosys", "z3")
@pytest.mark.parametrize("wrong", few(WRONG_RULES, "towards zero is down"))
def test_faults_of_rules_are_found(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, rule = WRONG_RULES[wrong]
    monkeypatch.setitem(peephole.RULES, op, (rule,))
    assert proved(step_of(_wrapping(), span=(-3000, 3000)), tmp_path)


GUESSES = {"a line that is another": "_cuts", "a product that is another": "_relations"}


@needs("yosys", "z3")
@pytest.mark.parametrize("cut", few(GUESSES, "a product that is another"))
def test_a_wrong_guess_is_no_fault(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not proved of a cut is told, and the proofs do without it."""
    step = step_of(_wrapping(), span=(-3000, 3000))
    guess = getattr(_Proofs, GUESSES[cut])

    def wrong(proofs: _Proofs) -> Any:
        first, *rest = guess(proofs)
        if cut == "a product that is another":
            ((high, swap, k), low) = first.terms
            return [replace(first, terms=[(high, swap, k + 1), low]), *rest]
        (other, *_) = rest
        return [replace(first, terms=other.terms), *rest]

    monkeypatch.setattr(_Proofs, GUESSES[cut], wrong)
    assert proved(step, tmp_path) == []
    assert "z3 says sat, so the proofs do without" in (tmp_path / "printed.txt").read_text()


@needs("yosys", "z3")
def test_a_counterexample_is_printed(tmp_path: Path) -> None:
    """Of its values the graph, and so the circuit before it was printed, makes what it says."""
    circuit = (step := step_of(_wrapping(), span=(-3000, 3000))).circuit
    text = step_module("step", circuit)
    assert proved(step, tmp_path, text.replace("< ", "<= ", 1))
    printed = (tmp_path / "printed.txt").read_text().split("FAILED")
    assert len(printed) == 3
    for each, name in zip(printed[1:], circuit.writes, strict=True):
        found = re.findall(r"^ +(\w+)[^=\n]*?(of the \w+)? = (-?\d+)$", each, re.MULTILINE)
        values = {port + of: int(value) for port, of, value in found}
        reads = {key: values[circuit.port_names[key]] for key in circuit.reads}
        port = circuit.port_names[name]
        assert circuit.evaluate(reads)[name] == values[f"{port}of the graph"]
        assert values[f"{port}of the circuit"] != values[f"{port}of the graph"]


@pytest.mark.parametrize("case", ["Xylo", "wraps"])
def test_formulas_and_circuits_agree_on_samples(case: str) -> None:
    """The formulas are written apart from the circuit, and carry values of their own."""
    step = step_of(CASES[case](), span=SPANS.get(case, (-100, 100)))
    proofs = _Proofs("step", step.circuit, step.stage, step.widths, step.program)
    found = step.circuit.evaluate(proofs.samples)
    for name, term in proofs.formula.outputs.items():
        if isinstance(term, Truth):
            np.testing.assert_array_equal(found[name] == 1, term.samples)
        else:
            assert isinstance(term, Term)
            np.testing.assert_array_equal(found[name] * 2**term.point, term.samples)


def test_products_are_cut_out() -> None:
    """A multiplier of the circuit is two products of the graph, of which a proof knows the sum."""
    for layer in (leaky(LEAKS[0]), xylo()):
        step = step_of(layer, span=(-3000, 3000))
        proofs = _Proofs("step", step.circuit, step.stage, step.widths, step.program)
        products = [wire.number for wire in step.circuit.wires if wire.op == "mul"]
        assert [each.wire.number for each in proofs.relations] == products


@needs("yosys", "z3")
def test_a_range_that_is_not_closed_is_found(tmp_path: Path) -> None:
    step = step_of(integers.LeakyIntegrator(3, beta=4, decay=integers.Shift()))
    (state,) = step.program.states.values()
    step.widths.ranges[state] = Interval(-50, 50)  # type: ignore[index]
    failed = proved(step, tmp_path)
    assert failed
    assert all("stays in its range" in line for line in failed)
