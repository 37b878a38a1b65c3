"""Scripts of the benchmarks print what they measure."""

import re
from importlib import import_module
from typing import Any

import pytest

from benchmarks import online_memory, quantised_accuracy, training_step

SLOW = pytest.mark.slow
TINY = {"tiny": training_step.Size(4, 3, 5, 6, 2)}
# the script, its arguments, what is made smaller, and how often a pattern is printed
SCRIPTS: list[Any] = [
    ("online_memory", "--steps 100", {"_FIRST": 10}, r"(?m)^ +(10|100) steps", 2),
    ("sparse_linear", "--quick --plot {out}/a.png", {}, "ms a training step", 3),
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
    pytest.param("online_digits", "--epochs 1 --rules eprop", {}, "epochs", 3, marks=SLOW),
]


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
