"""The benchmarks run, on our own library alone."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.__main__ import main
from benchmarks.cases import all_cases, quick
from benchmarks.options import parse
from benchmarks.table import three


def test_quick_run_writes_table_json_and_plot(tmp_path, capsys):
    words = ["LIF N=128", "conv", "BSRLIF", "one step", "memory"]
    code = main(
        ["--quick", "--peers", "tracetorch-eager", "--cases", *words, "--out", str(tmp_path)]
    )
    assert code == 0, capsys.readouterr().out
    told = json.loads((tmp_path / "results.json").read_text())
    assert set(told["versions"]) == {"tracetorch", "tracetorch-eager"}
    for name, found in told["results"].items():
        ours = found["tracetorch"]
        assert ours.get("seconds", ours.get("bytes")) >= 0, name
        assert 0 < ours["density"] < 1, name
    assert told["ratios"]["BSRLIF N=512, train"]["tracetorch-eager"] > 0
    page = (tmp_path / "table.md").read_text()
    assert "| LIF N=128, forward |" in page
    assert (tmp_path / "lif.png").stat().st_size > 1000


def test_names_of_cases_are_unique_and_quick_ones_small():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert max(quick(case).elements for case in cases) <= 2 * 2 * 784


def test_unknown_case_lists_those_there_are(capsys):
    assert main(["--cases", "no such"]) == 2
    assert "LIF N=128, forward" in capsys.readouterr().out


def test_rounds_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        parse(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "told"), [(0.01234, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234")]
)
def test_three_digits(value, told):
    assert three(value) == told
