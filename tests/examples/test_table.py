from __future__ import annotations

import importlib
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples import common, recipe_parts, table
from tracetorch import neurons

ROW = common.Row(
    task="row_digits",
    configuration="LIF",
    seed=0,
    scores={"accuracy": 0.90, "firing rate": 0.25},
    parameters=12_345,
    seconds=10.0,
    cpu_seconds=4.0,
    threads=1,
    date="2026-11-24",
    command="python -m examples.row_digits --neuron LIF --epochs 5 --smoothing 0.1 --seeds 0 1 2",
    torch="2.13.0",
    tracetorch="0.10.0",
)
PAGE = (
    "before\n<!-- neurons -->\nold\n<!-- /neurons -->\n"
    "<!-- events -->\n<!-- /events -->\n<!-- spike_trains -->\n<!-- /spike_trains -->\n"
    "<!-- results -->\n<!-- /results -->\nafter\n"
)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a page, and rows of its tasks, into a temporary folder."""
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    monkeypatch.setattr(table, "TUTORIALS", tmp_path)
    for name, made in table.TABLES.items():
        text = f"# A\n<!-- {made} -->\n<!-- /{made} -->\nend\n"
        (tmp_path / f"{name}.md").write_text(text)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    (tmp_path / "README.md").write_text(PAGE)
    for seed, accuracy in ((0, 0.90), (1, 0.94)):
        scores = {"accuracy": accuracy, "firing rate": 0.25}
        common.record(replace(ROW, seed=seed, scores=scores), common.RESULTS)
    alif, half = "ALIF delays 8", {"accuracy": 0.5}
    rates = "python -m examples.row_digits --neuron ALIF --lr 1e-2 --seeds 0"
    gru = "python -m examples.words --baseline gru --smoothing 0.1 --seeds 0"
    spikes = {"firing rate": 0.1, "spikes": 120.4, "operations": 9876.0, **half}
    rows: list[dict[str, Any]] = [
        {"configuration": "SReadout", "command": "other", "scores": half},
        {"configuration": alif, "command": rates},
        {"task": "words", "configuration": alif, "cpu_seconds": 2.5},
        {"task": "words", "configuration": "gru", "command": gru},
        {"task": "vowels", "parameters": 678, "scores": {"accuracy": 0.75}},
        {"task": "memorise", "configuration": "LIF", "scores": {"F1": 0.875, "more": 2.0}},
        {"task": "events", "configuration": "LIF delays 8", "scores": spikes},
        {"configuration": "LIF delays 4, shifted by 1", "command": "moved"},
        {"configuration": "gru, shifted by 1", "command": "other", "scores": half},
    ]
    for row in rows:
        common.record(replace(ROW, **row), common.RESULTS)
    return tmp_path / "README.md"


def test_tables_are_made_of_the_recorded_rows(page, capsys) -> None:
    assert table.main(["--check"]) == 1
    assert page.read_text() == PAGE
    assert table.main([]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- neurons -->\n| network |")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text
    for line in (
        "LIF | 92.0 ± 2.8 % | 4.0 | 75.0 % | 4.0 |  |  | 0.25 | 12,345",
        "SReadout and ReLU | 50.0 % | 4.0 |  |  |  |  |  | 12,345",
        "ALIF delays 8 | 90.0 % | 4.0 |  |  | 90.0 % | 2.5 | 0.25 | 12,345",
        "gru |  |  |  |  | 90.0 % | 4.0 |  | ",
    ):
        assert f"\n| {line} |\n" in text
    whole = "| row_digits | LIF | 92.0 ± 2.8 % | 2 | 12,345 | 10 | 4.0 | 2026-11-24 |"
    assert f"{whole} `{ROW.command}` |\n" in text
    assert "| memorise | LIF | F1 0.875, more 2 | 1 |" in text
    line = "| LIF delays 8 | 50.0 % | 120 | 9,876 |  | 12,345 | 4.0 |"
    assert text.count(line) == text.count("\n| LIF delays 8 |") == 1
    tutorial = (page.parent / "events.md").read_text()
    assert tutorial.startswith("# A\n<!-- events -->\n| network |")
    assert tutorial.endswith(f"\n{line}\n<!-- /events -->\nend\n")
    digits = (page.parent / "row_digits.md").read_text()
    assert "|\n| LIF delays 4 | 90.0 % | 0.25 | 12,345 | 4.0 | `moved` |\n" in digits
    assert "\n| gru | 50.0 % |  | 12,345 | 4.0 | `other` |\n<!-- /digits -->" in digits
    assert text.count("delays 4, shifted by 1 |") == text.count("gru, shifted by 1 |") == 1
    assert table.main(["--check"]) == 0
    (page.parent / "events.md").write_text(tutorial.replace(line, ""))
    assert table.main(["--check"]) == 1
    printed = capsys.readouterr().err.splitlines()
    names = [*table.TABLES, "README", "events"]
    assert printed == [f"{name}.md is out of date: python -m examples.table" for name in names]
    files = [path.stem for path in page.parent.iterdir() if path.is_file()]
    assert sorted(files) == sorted(names[:-1])


def test_page_without_markers_is_refused(page: Path) -> None:
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"needs one <!-- neurons --> .* has 0"):
        table.main([])
    assert page.read_text() == "nothing"


def test_rows_of_one_name_are_of_one_command(page: Path) -> None:
    other = "python -m examples.row_digits --neuron LIF --seeds 2"
    common.record(replace(ROW, seed=2, command=other), common.RESULTS)
    with pytest.raises(ValueError, match=r"row_digits: rows of LIF are of different runs, python"):
        table.main(["--check"])


def test_only_missing_runs_are_made(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    class Script:
        @staticmethod
        def main(arguments: list[str]) -> int:
            ran.append(arguments)
            return 1 if arguments[:2] == ["--seeds", "4"] else 0

    monkeypatch.setattr(importlib, "import_module", lambda name: Script)
    choices = [("row_digits", f"--lr {rate} --validation --seeds 3") for rate in (1, 2)]
    monkeypatch.setattr(table, "CHOICES", tuple(choices))
    runs = [("row_digits", f"--neuron LIF --seeds {seeds}") for seeds in ("0 1", "0 1 2")]
    monkeypatch.setattr(table, "RUNS", (*runs, ("vowels", "--seeds 4"), ("vowels", "--seeds 5")))
    command = "python -m examples.row_digits --neuron LIF --seeds 0 1"
    rows = common.read(common.RESULTS / "row_digits.jsonl")
    for row in (row for row in rows if row.configuration == "LIF"):
        common.record(replace(row, command=command), common.RESULTS)
    command = "python -m examples.row_digits --lr 1 --validation --seeds 3"
    common.record(replace(ROW, command=command), common.RESULTS / "validation")
    assert table.main(["--run", "row_digits"]) == 0
    assert ran == [
        ["--lr", "2", "--validation", "--seeds", "3", "--record"],
        ["--neuron", "LIF", "--seeds", "0", "1", "2", "--record"],
    ]
    assert table.main(["--run", "vowels"]) == 1
    assert ran[2:] == [["--seeds", "4", "--record"]]


def test_every_run_is_recorded_every_neuron_in_the_table_and_the_page_up_to_date() -> None:
    assert table.main(["--check"]) == 0
    for task, arguments in table.RUNS:
        command = f"python -m examples.{task} {arguments}"
        rows = [r for r in common.read(common.RESULTS / f"{task}.jsonl") if r.command == command]
        seeds = [int(seed) for seed in arguments.partition("--seeds ")[2].split()]
        assert [row.seed for row in rows] == seeds, command
        assert len(seeds) >= 3
        assert {row.threads for row in rows} == {1}
    assert {*table.NEURONS} >= {*neurons.__all__, "LIF"}
    commands = {(task, *arguments.split()[:2]) for task, arguments in table.RUNS}
    for task in table.TASKS:
        names = neurons.__all__ if task == "row_digits" else table.FEW
        assert {(task, "--neuron", name) for name in names} <= commands
        assert (task, "--baseline", "gru") in commands


def test_the_rate_of_the_gru_is_its_best_on_the_validation_data_of_every_task() -> None:
    for task in table.TASKS:
        validated: dict[float, list[float]] = {}
        for row in common.read_lines(recipe_parts.RESULTS):
            if row["network"] == "GRU" and row["task"] == task:
                validated.setdefault(float(row["part"]), []).append(row["validation"])
        assert set(validated) == {float(rate) for rate in table.RATES}
        assert all(len(values) == 3 for values in validated.values())
        best = max(validated, key=lambda rate: statistics.mean(validated[rate]))
        assert best == float(table.GRU_RATE)


def test_the_rate_of_the_gru_is_its_best_for_digits_that_move() -> None:
    found = {rate: table.validated(rate) for rate in table.RATES}
    assert all(len(values) == 2 for values in found.values())
    assert max(found, key=lambda rate: statistics.mean(found[rate])) == table.SHIFTED_RATE
