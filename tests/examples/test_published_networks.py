"""The script of published networks runs, and the page shows the rows that it has recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples import published_networks

PAGE = Path(__file__).parents[2] / "docs/use/models.md"


def test_a_quick_run_measures_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--networks", "SDT-2-32", "--seeds", "3", "--out", str(tmp_path)]
    assert published_networks.main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert published_networks.read(tmp_path) == [row]
    assert row["seed"] == 3
    assert 0 <= row["accuracy"] <= 1
    assert 0 <= row["spikes"] <= 1
    assert row["macs"] + row["acs"] < row["dense"]


def test_a_row_takes_the_place_of_one_of_the_same_run(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.5), (1, 0.7), (0, 0.9)):
        published_networks.write({"network": "a", "seed": seed, "accuracy": accuracy}, tmp_path)
    kept = {(row["seed"], row["accuracy"]) for row in published_networks.read(tmp_path)}
    assert kept == {(0, 0.9), (1, 0.7)}


def test_the_page_shows_the_recorded_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = published_networks.read(published_networks.RESULTS)
    assert rows
    assert {row["network"] for row in rows} <= set(published_networks.NETWORKS)
    assert published_networks.main(["--table"]) == 0
    table = capsys.readouterr().out.strip()
    assert f"<!-- digits -->\n{table}\n<!-- /digits -->" in PAGE.read_text()
