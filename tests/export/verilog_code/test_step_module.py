"""The printed module computes what its circuit does, and no tool warns of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cases import few
from tests.export.verilog_code.steps import (
    Step,
    drawn,
    expected_ports,
    needs,
    port_values,
    random_step,
    run,
    simulated,
    step_of,
)
from tests.export.verilog_code.test_circuit import CASES, SPANS

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
