"""Circuits of integer steps, and the modules that are printed of them, equal PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.cases import few
from tests.export.verilog_code.steps import (
    ENDS,
    LEAKS,
    PARTS,
    Step,
    drawn,
    evaluated,
    expected_ports,
    leaky,
    needs,
    port_values,
    random_step,
    run,
    simulated,
    step_of,
    xylo,
)
from tracetorch import integers, snn
from tracetorch.export.verilog_code.wires import Word, word_of
from tracetorch.fuse.ir.intervals import Interval

CASES: dict[str, Callable[[], nn.Module]] = {
    **{str(leak): partial(leaky, leak) for leak in LEAKS},
    "synapse, recurrence, two thresholds": lambda: leaky(LEAKS[0], "RS", "BLIF"),
    "wraps": lambda: leaky(LEAKS[0], "S", "BLIF", overflow="wrap", state_bits=10),
    "reset to zero": lambda: leaky(LEAKS[3], reset="zero"),
    "averages": lambda: leaky(LEAKS[2], "RS", beta_ema=True, alpha_ema=True, gamma_ema=True),
    "one decay for all": lambda: integers.LeakyIntegrator(3, beta=230, pos_threshold=100),
    "a fraction": lambda: leaky(LEAKS[6], "R", rec_weight=21, rec_weight_fraction=4),
    "Xylo": xylo,
    "Xylo, version 1": lambda: xylo(version=1, max_spikes=1),
    "Xylo, a bias": lambda: xylo(bias=-300),
}
SPANS = {"wraps": (-3000, 3000), "Xylo": (-3000, 3000)}


def check(layer: nn.Module, count: int = 2000, **how: Any) -> None:
    """Compare a circuit with the step of PyTorch."""
    step = step_of(layer, **how)
    values = drawn(step, count)
    found = evaluated(step.circuit, port_values(step, values))
    for name, wanted in expected_ports(step, values).items():
        np.testing.assert_array_equal(np.broadcast_to(found[name], wanted.shape), wanted, name)
    for wire in step.circuit.wires:
        assert wire.low <= wire.high


def check_printed(step: Step, folder: Path) -> None:
    """Compare a printed module in iverilog with PyTorch, and let verilator and yosys read it."""
    values = drawn(step, 300)
    found = simulated(step, port_values(step, values), folder)
    for name, wanted in expected_ports(step, values).items():
        np.testing.assert_array_equal(found[name], wanted, name)
    assert not run(["verilator", "--lint-only", "-Wall", "step.v"], folder).count("%")
    assert "arning" not in run(["yosys", "-q", "-p", "read_verilog step.v; prep"], folder)


@needs("iverilog", "verilator", "yosys")
@pytest.mark.parametrize("case", few(CASES, "wraps", "Xylo", "Shift(rounding='nearest')"))
def test_a_printed_module_equals_pytorch(case: str, tmp_path: Path) -> None:
    check_printed(step_of(CASES[case](), span=SPANS.get(case, (-100, 100))), tmp_path)


@needs("iverilog", "verilator", "yosys")
@pytest.mark.parametrize("seed", few(range(50), 0, 1))
def test_random_printed_modules(seed: int, tmp_path: Path) -> None:
    check_printed(step_of(random_step(seed), double=True), tmp_path)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
def test_a_circuit_equals_pytorch(case: str) -> None:
    check(CASES[case](), span=SPANS.get(case, (-100, 100)))


@pytest.mark.slow
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("parts", PARTS)
def test_every_leaky_integrator(
    parts: str, ends: str, leak: Any, reset: Any, overflow: Any
) -> None:
    check(leaky(leak, parts, ends, reset=reset, overflow=overflow), span=(-9000, 9000))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", [0, 1, 2, 18])  # & and | are of step 18 alone
def test_random_steps(seed: int) -> None:
    check(random_step(seed), double=True)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(4, 10**6))
def test_any_random_step(seed: int) -> None:
    check(random_step(seed), double=True)


def own(step: Any) -> snn.Neuron:
    """Three neurons of a step of one state."""
    kind: Any = type("Own", (snn.Neuron,), {"states": ("held",), "step": staticmethod(step)})
    made: snn.Neuron = kind(3)
    return made


def test_a_chain_of_choices_becomes_a_barrel_shift() -> None:
    """A shift that is a state has no multiplier: a choice for each bit of it."""

    def shifting(x: torch.Tensor, held: torch.Tensor) -> Any:
        held = integers.wrap(held + 1, 5, signed=False)
        return integers.shift_right(x, held, "trunc"), held

    check(own(shifting), double=True, span=(-4000, 4000))
    ops = [wire.op for wire in step_of(own(shifting), double=True).circuit.wires]
    assert "mul" not in ops
    assert ops.count("mux") < 20
    for leak in LEAKS[:3]:  # a decay by a multiplier has one
        ops = [wire.op for wire in step_of(leaky(leak)).circuit.wires]
        assert ops.count("mul") == 1


def test_wrapping_takes_the_low_bits() -> None:
    def wrapping(x: torch.Tensor, held: torch.Tensor) -> Any:
        held = integers.wrap(held + x, 8)
        return held, held

    circuit = step_of(own(wrapping)).circuit
    assert [wire.op for wire in circuit.wires] == ["read", "read", "add", "part"]
    assert circuit.wires[-1].k == 8


def test_what_is_no_integer_arithmetic_is_refused() -> None:
    def halves(x: torch.Tensor, held: torch.Tensor) -> Any:
        held = integers.saturate(torch.floor(torch.fmod(x, 3.0)) + held, 8)
        return held, held

    with pytest.raises(ValueError, match="no rule of interval arithmetic"):
        step_of(own(halves))


@pytest.mark.parametrize(
    ("low", "high", "point", "word"),
    [
        (0, 0, 0, Word(1, False)),
        (0, 1, 0, Word(1, False)),
        (0, 255, 0, Word(8, False)),
        (-1, 0, 0, Word(1, True)),
        (-128, 127, 0, Word(8, True)),
        (-128, 128, 0, Word(9, True)),
        (-5, -3, 0, Word(4, True)),
        (0, 0.75, 2, Word(2, False)),
    ],
)
def test_words(low: float, high: float, point: int, word: Word) -> None:
    assert word_of(Interval(low, high), point) == word
    assert word.low <= low * 2**point
    assert high * 2**point <= word.high
    assert word_of(Interval(1, 1), boolean=True) == Word(1, False)
    with pytest.raises(ValueError, match="give what is saturated"):
        word_of(Interval(0, np.inf))
