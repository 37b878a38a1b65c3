"""The table of kernels that were compiled for GPUs, and the pages that say so."""

import importlib.util
import re

import pytest

from benchmarks.gpu.__main__ import BEGIN, layers, main, table
from benchmarks.gpu.page import END, PAGE, between, write
from benchmarks.libraries import ROOT
from tests.cases import LAYERS, NEURONS

ROWS = dict(re.findall(r"^\| (\w+) \| (\d.*) \|$", between(BEGIN), flags=re.M))


def test_the_page_has_a_row_for_every_neuron():
    assert ROWS.keys() == layers().keys() == {*LAYERS, *NEURONS}
    assert "no registers in memory inside of the loops" in PAGE.read_text()
    assert "no instructions that round otherwise than the step" in PAGE.read_text()


def test_rows_are_what_the_command_writes():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    (row,) = re.findall(r"^\| LIF \| (.*) \|$", table(["sm_80", "sm_90"], ["LIF"]), flags=re.M)
    if f"Compiled by Triton {triton.__version__} for" in PAGE.read_text():
        assert row == ROWS["LIF"]
    # another release compiles a little better or worse
    found, expected = (list(map(int, re.findall(r"\d+", each))) for each in (row, ROWS["LIF"]))
    assert found == pytest.approx(expected, rel=0.5)


def test_pages_say_that_nothing_ran_on_a_gpu_until_there_are_results_of_one():
    measured = (ROOT / "benchmarks" / "results" / "cuda" / "table.md").exists()
    pages = {
        PAGE: "nothing on this page was measured on a GPU",
        ROOT / "docs" / "faq.md": "they were not run\non one",
        ROOT / "docs" / "use" / "speed.md": "**No figure for a GPU** is recorded",
    }
    for page, text in pages.items():
        assert (text in page.read_text()) is not measured, page


def test_a_table_takes_the_place_of_the_last_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{BEGIN}\n{END}\n\nother\n{END}\n")
    for text in ("| one |", r"| \1 two |"):
        write(text, BEGIN, page)
        assert page.read_text() == f"above\n\n{BEGIN}\n\n{text}\n\n{END}\n\nother\n{END}\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"page\.md has 0 places for the table"):
        write("", BEGIN, page)


def test_without_triton_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "Triton is not installed; it compiles without a GPU: make" in capsys.readouterr().out
