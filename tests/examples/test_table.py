from __future__ import annotations

import statistics

from examples import common, recipe_parts, table
from tracetorch import neurons


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
