"""Run the benchmarks on traceTorch alone."""

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.__main__ import main
from benchmarks.cases import all_cases, quick


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


def test_case_names_are_unique_and_quick_shapes_small():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert max(quick(case).elements for case in cases) <= 2 * 2 * (32 * 34 * 34)
