"""Run the benchmarks on traceTorch alone, and the scripts, which print what they measure."""

import json
import re
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks import fixed_cost, online_memory, quantised_accuracy, training_step
from benchmarks.__main__ import main
from benchmarks.cases import all_cases, quick

SLOW = pytest.mark.slow
TINY = {"tiny": training_step.Size(4, 3, 5, 6, 2)}
# the script, its arguments, what is made smaller, and how often a pattern is printed
SCRIPTS: list[Any] = [
    ("online_memory", "--steps 100", {"_FIRST": 10}, r"(?m)^ +(10|100) steps", 2),
    ("sparse_linear", "--quick --plot {out}/a.png", {}, "ms a training step", 3),
    ("fixed_cost", "--rounds 1", {}, r"\| (4 x \(Linear, LIF\)|LIF) \| (train|forward) \|", 4),
    ("loop_jitter", "--steps 20", {"COUNTS": (2,)}, r"(?m)^\| (Python.*|2) \|", 3),
    ("training_step", "--rounds 2", {"SIZES": TINY}, r"\| tiny \|", 1),
    (
        *("long_sequence", "--rounds 1"),
        {"T": 64, "SEGMENTS": (None, "auto"), "memories": lambda threads: [2, 1]},
        *(r"\| (None|auto) \| 0\.0", 2),
    ),
    (
        *("sparse_recurrent", "--quick --plot {out}/a.png --brian2 {out}/none"),
        {"find_spec": lambda name: None},
        *(r"(?m)^ *(build|forward|gradient|growth_edges|growth_spikes):", 5),
    ),
    (
        *("signals", "--seeds 1 --signals Mackey-Glass"),
        {"SAMPLES": (64, 64), "UPDATES": {"LIF": 2, "GRU": 2}},
        *(r"\| Mackey-Glass \|", 1),
    ),
    pytest.param("online_digits", "--epochs 1 --rules eprop", {}, "epochs", 3, marks=SLOW),
]


@pytest.mark.one_in(4)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch 2.12
@pytest.mark.parametrize(("name", "arguments", "smaller", "pattern", "times"), SCRIPTS)
def test_a_script_prints_its_lines(
    name, arguments, smaller, pattern, times, tmp_path, monkeypatch, capsys
):
    script = import_module(f"benchmarks.{name}")
    for attribute, value in smaller.items():
        monkeypatch.setattr(script, attribute, value)
    script.main(arguments.format(out=tmp_path).split())
    assert len(re.findall(pattern, capsys.readouterr().out)) == times
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    (_, early), (steps, late) = online_memory.measure(3_000)
    assert steps == 3_000
    # the graphs of two thousand steps take 34 MB, where they are kept
    assert late - early < 1_000_000


@pytest.mark.slow
def test_quantised_networks_are_smaller_and_right(capsys):
    quantised_accuracy.main(["--quick", "--tasks", "vowels", "--seeds", "0"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7]]
    assert [row[1] for row in cells] == ["float", *quantised_accuracy.TARGETS]
    sizes = [int(row[5].replace(",", "")) for row in cells]
    assert all(3 * size < 2 * sizes[0] for size in sizes[1:])
    assert all(float(row[3].split(" ")[0]) > 30 for row in cells)  # of 9 classes


def quick_run(folder, cases: list[str], peers: list[str]) -> dict:
    run = ["--quick", "--peers", *peers, "--cases", *cases, "--out", str(folder)]
    assert main(run) == 0
    results = json.loads((folder / "results.json").read_text())
    assert set(results["versions"]) == {"tracetorch", *peers}
    for name, found in results["results"].items():
        assert not [answer for answer in found.values() if "failed" in answer], found
        ours = found["tracetorch"]
        assert ours.get("seconds", ours.get("bytes")) >= 0, name
        # four steps of sixteen inputs leave a layer behind sparse spikes silent
        assert 0 <= ours["density"] < 1, name
    return results


@pytest.mark.slow
def test_quick_run_writes_table_json_and_plots(tmp_path):
    cases = ["LIF N=128", "N=512, input 5 %, train"]
    results = quick_run(tmp_path, cases, ["floor"])
    for ratios in ("ratios", "cold_ratios"):
        assert results[ratios]["LIF N=128, train"]["floor"] > 0
    cold, hot = (tmp_path / "table.md").read_text().split("## Hot")
    assert "| LIF N=128, forward |" in cold
    assert "| LIF N=128, forward |" in hot
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("lif", "density"))


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


# of the package's own functions, and changes of file: a hop more is to be seen
MOST = {
    "unroll(Linear-LIF-Linear-Readout)": (41, 29),
    "unroll(LIF)": (23, 16),
    "layer(x) with a graph": (17, 10),
    "layer(x) without a graph": (10, 5),
}


@pytest.mark.parametrize("name", MOST)
def test_warm_calls_stay_few(name):
    counted = fixed_cost.package_calls(fixed_cost.single_calls()[name])
    assert 0 < counted.calls <= MOST[name][0]
    assert counted.changes <= MOST[name][1]
