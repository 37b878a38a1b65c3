"""The printed module computes what its circuit does, and no tool warns of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases import few
from tests.export.verilog_code.steps import (
    Step,
    drawn,
    expected_ports,
    leaky,
    needs,
    port_values,
    random_step,
    run,
    simulated,
    step_of,
)
from tests.export.verilog_code.test_circuit import CASES, SPANS
from tracetorch import integers
from tracetorch.export.verilog_code.step_module import step_module, step_text

SHIFT = "Shift(rounding='nearest')"


def check(step: Step, folder: Path) -> None:
    """Compare a printed module in iverilog with PyTorch, and let verilator and yosys read it."""
    values = drawn(step, 300)
    found = simulated(step, port_values(step, values), folder)
    for name, wanted in expected_ports(step, values).items():
        np.testing.assert_array_equal(found[name], wanted, name)
    assert not run(["verilator", "--lint-only", "-Wall", "step.v"], folder).count("%")
    assert "arning" not in run(["yosys", "-q", "-p", "read_verilog step.v; prep"], folder)


@needs("iverilog", "verilator", "yosys")
@pytest.mark.parametrize("case", few(CASES, "wraps", "Xylo", SHIFT))
def test_iverilog_equals_pytorch(case: str, tmp_path: Path) -> None:
    check(step_of(CASES[case](), span=SPANS.get(case, (-100, 100))), tmp_path)


@needs("iverilog", "verilator", "yosys")
@pytest.mark.parametrize("seed", few(range(50), 0, 1))
def test_random_steps(seed: int, tmp_path: Path) -> None:
    check(step_of(random_step(seed), double=True), tmp_path)


def test_equal_steps_have_equal_texts() -> None:
    texts = [step_text(step_of(leaky(integers.Shift(), beta=(0, b))).circuit) for b in (4, 4, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_names_from_outside_do_not_escape() -> None:
    circuit = step_of(leaky(integers.Shift())).circuit
    assert all(name.isidentifier() for name in circuit.port_names.values())


@needs("yosys")
@pytest.mark.parametrize(
    ("layer", "most"),
    [
        ({"beta": 4, "decay": integers.Shift()}, 90),
        ({"beta": 230}, 246),
        ({"alpha": 200, "beta": 230}, 414),
    ],
    ids=["shift", "multiplier", "synapse"],
)
@pytest.mark.slow
def test_cells(layer: dict[str, Any], most: int, tmp_path: Path) -> None:
    """A neuron takes no more logic of an iCE40 than it did."""
    made = integers.LeakyIntegrator(3, pos_threshold=100, **layer)
    (tmp_path / "step.v").write_text(step_module("step", step_of(made).circuit))
    command = "read_verilog step.v; synth_ice40; tee -o stat.txt stat"
    run(["yosys", "-q", "-p", command], tmp_path, quiet=False)
    counts = (tmp_path / "stat.txt").read_text().split()
    assert int(counts[counts.index("SB_LUT4") + 1]) <= most
