"""A minute of fuzzing, of the same seeds each time; ``python -m tests.fuzz`` runs on."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import few
from tests.fuse.codegen.test_c_kernel import CC
from tests.fuzz import __main__ as command
from tests.fuzz import circuits, networks, steps
from tests.fuzz.draw import source

FIRST = int(os.environ.get("TRACETORCH_FUZZ_SEED", "0"))


def seeds(fast: int, every: int) -> list[Any]:
    return few(range(FIRST, FIRST + every), *range(FIRST, FIRST + fast))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", seeds(13, 20))
def test_random_step(seed: int, tmp_path: Path) -> None:
    reason = steps.check(seed, tmp_path if CC is not None and seed % 6 == 0 else None)
    assert reason is None, source(seed, monitors=True)


@pytest.mark.skipif(steps.NODE is None, reason="Node is not installed")
def test_random_steps_in_javascript() -> None:
    steps.check_javascript(range(FIRST, FIRST + 10))


@pytest.mark.parametrize("seed", seeds(10, 16))
def test_random_network(seed: int) -> None:
    assert networks.check(seed) is None


@pytest.mark.skipif(not circuits.CAN_RUN, reason="needs iverilog and verilator")
@pytest.mark.parametrize("seed", seeds(3, 6))
def test_random_network_as_a_circuit(seed: int, tmp_path: Path) -> None:
    assert circuits.check(seed, tmp_path) is None


def test_all_that_is_drawn_is_drawn() -> None:
    """Half of the steps have a monitor, losses leave results out, networks are of all kinds."""
    cases = [steps.drawn(seed) for seed in range(60)]
    assert sum("rms" in case.layer.active_states for case in cases) > 20
    assert sum("late" in case.layer.active_states for case in cases) > 20
    assert sum("output" not in case.reads for case in cases) > 10
    assert sum(not case.x[:, 0].any() for case in cases) > 20
    text = "".join(source(seed) for seed in range(200))
    parts = ("clone()", ".unsqueeze(0)", "torch.int32", "+=", "masked_fill", ".view(-1)")
    assert all(part in text for part in parts)
    assert source(3) == source(3)
    assert source(3) != source(4)
    drawn = [networks.drawn(seed) for seed in range(60)]
    kinds = {type(m).__name__ for case in drawn for m in case.model.modules()}
    wanted = {"Conv2d", "Recurrent", "Delay", "DelayedLinear", "Residual", "Populations"}
    assert wanted | {"Branches", "SEWBlock", "LayerNorm", "RandomNeuron"} <= kinds
    for name in ("reset", "segment", "record", "before"):
        assert 5 < sum(getattr(case, name) is not None for case in drawn) < 45, name


def test_what_differs_is_told_with_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: steps.Case, expected: object) -> None:
        raise AssertionError("spikes of single steps")

    monkeypatch.setattr(steps, "one_by_one", broken)
    assert command.main(["--seed", "5", "--seconds", "0"]) == 1
    told = capsys.readouterr().out
    assert "step 5: AssertionError: spikes of single steps" in told
    assert "class RandomNeuron" in told
    monkeypatch.undo()
    assert command.main(["--seed", "5", "--seconds", "0"]) == 0
    assert "1 steps, 1 networks" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracetorch.fuse.ir import lower

    right = lower._RULES["lerp"]
    monkeypatch.setitem(lower._RULES, "lerp", lambda b, x, y, w: right(b, x, y, 1.01 * w))
    monkeypatch.setattr("tracetorch.fuse.dispatch.plans._programs", {})
    seed = random.Random(0).randrange(1000)
    with pytest.raises(AssertionError, match=f"seed {seed}, cpu"):
        steps.check(seed)
