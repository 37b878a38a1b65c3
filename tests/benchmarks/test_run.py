"""Run the benchmarks on traceTorch alone."""

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.__main__ import main
from benchmarks.cases import all_cases, quick
from benchmarks.options import parse
from benchmarks.table import three_digits
from benchmarks.worker import measure, product


def quick_run(folder, cases: list[str], peers: list[str]) -> dict:
    code = main(["--quick", "--peers", *peers, "--cases", *cases, "--out", str(folder)])
    assert code == 0
    results = json.loads((folder / "results.json").read_text())
    assert set(results["versions"]) == {"tracetorch", *peers}
    for name, found in results["results"].items():
        assert not [answer for answer in found.values() if "failed" in answer], found
        ours = found["tracetorch"]
        assert ours.get("seconds", ours.get("bytes")) >= 0, name
        # four steps of sixteen inputs leave a layer behind sparse spikes silent
        assert 0 <= ours["density"] < 1, name
    return results


def test_quick_run_writes_table_json_and_plots(tmp_path):
    cases = ["LIF N=128", "N=512, input 5 %, train"]
    results = quick_run(tmp_path, cases, ["floor"])
    assert results["ratios"]["LIF N=128, train"]["floor"] > 0
    assert results["cold_ratios"]["LIF N=128, train"]["floor"] > 0
    cold, hot = (tmp_path / "table.md").read_text().split("## Hot")
    assert "| LIF N=128, forward |" in cold
    assert "| LIF N=128, forward |" in hot
    assert (tmp_path / "lif.png").stat().st_size > 1000
    assert (tmp_path / "density.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_kind_of_case_runs(tmp_path):
    cases = ["SHD", "784", "DVS", "Conv2d", "digits", "conv", "memory", "SEW-ResNet"]
    cases += ["Linear+LIF T=500", "one step", "elays to 25", "BSRLIF N=512, train"]
    cases += ["Recurrent LIF N=128, train", "ALIF N=512, train", "SEAdLIF N=512, forward"]
    results = quick_run(tmp_path, cases, ["tracetorch-eager", "relu", "floor"])
    assert results["ratios"]["BSRLIF N=512, train"]["tracetorch-eager"] > 0
    assert results["cold_ratios"]["SHD shape 700-256-256-20, input 2 %, train"]["relu"] > 0


def test_a_run_is_cold_behind_a_product():
    done = []

    class Task:
        def run(self):
            done.append("run")

        def density(self):
            return 0.0

    measure(Task(), 0.0, chill=lambda: done.append("product"))
    assert done == ["product", "run"]
    product()()


@pytest.mark.slow
def test_cases_measured_again_replace_their_rows(tmp_path, capsys):
    quick_run = ["--quick", "--peers", "--out", str(tmp_path)]
    assert main([*quick_run, "--cases", "LIF N=8192", "one step"]) == 0
    before = json.loads((tmp_path / "results.json").read_text())["results"]
    with_floor = ["--quick", "--peers", "floor", "--out", str(tmp_path)]
    assert main([*with_floor, "--cases", "LIF N=8192, forward", "--again"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    changed = {name for name in before if results["results"][name] != before[name]}
    assert changed == {"LIF N=8192, forward"}
    assert results["settings"]["again"] == ["LIF N=8192, forward"]
    # a library that was not in the first run is added
    assert list(results["versions"]) == ["tracetorch", "floor"]
    assert results["results"]["LIF N=8192, forward"].keys() == {"tracetorch", "floor"}
    page = (tmp_path / "table.md").read_text()
    assert "Measured again in a run of their own, after the others: LIF N=8192, forward." in page
    assert "| one step B=1 N=128 |" in page
    with pytest.raises(ValueError, match="two runs of different rounds have no table: 1, 2"):
        main([*quick_run, "--cases", "LIF N=8192", "--rounds", "2", "--again"])
    assert main(["--cases", "LIF", "--out", str(tmp_path / "no"), "--again"]) == 2
    assert "there are no results in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(["--again"])


def test_case_names_are_unique_and_quick_shapes_small():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert max(quick(case).elements for case in cases) <= 2 * 2 * (32 * 34 * 34)


def test_names_of_cases_and_arguments(capsys):
    assert main(["--cases", "no such"]) == 2
    assert "LIF N=128, forward" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.01234, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234")],
)
def test_three_digits(value, expected):
    assert three_digits(value) == expected
