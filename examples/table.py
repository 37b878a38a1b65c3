"""Write the tables of the pages from the rows in results/; ``--run`` makes missing runs first.

``python -m examples.table`` updates the tables; ``--check`` only reports whether they are up to
date; ``--run`` first makes every run whose rows are missing, one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import tracetorch as tt
from examples import common, networks, spike_trains
from tracetorch.core.files import atomic_replace

README = Path(__file__).parent / "README.md"
TUTORIALS = README.parents[1] / "docs/tutorials"
TABLES = {"events": "events", "row_digits": "digits", "spike_trains": "spike_trains"}  # by tutorial
RECIPE = ", recipe"  # in the name of what --neuron has trained
SMOOTHED = ", smoothing 0.1"  # in that of a baseline with the same labels and passes
MOVED = ", shifted by 1"  # in that of a network whose training digits move
THREE = "--seeds 0 1 2"
FIVE = "--seeds 0 1 2 3 4"

# Networks of any neuron by one recipe, and the tasks on which each is measured.
NEURONS = ("LIF", "SLIF", "RLIF", "BSRLIF", *tt.neurons.__all__)
TASKS = {
    "row_digits": "--epochs 5 --smoothing 0.1",
    "vowels": "--epochs 30 --smoothing 0.1",
    "words": "--epochs 10 --smoothing 0.1",
}
# Of the neurons, those that are measured on the words too.
WORDS = ("LIF", "ALIF", "AdLIF", "SEAdLIF")
# What the tutorial on events adds step by step, and what it compares with.
EVENTS = (
    *("--neuron LIF", "--neuron AdLIF", "--neuron SEAdLIF"),
    *("--neuron LIF --delays 8", "--neuron SEAdLIF --delays 8"),
    *("--baseline mlp-of-mean", "--baseline gru"),
)
# The rate of all of them: the best of these for LIF, by the mean over the three tasks' validation
# data. Its seeds are none of the seeds of the results.
RATES = ("5e-3", "1e-2", "2e-2")
RATE = "1e-2"
Choices: TypeAlias = tuple[tuple[str, str], ...]
CHOICES: Choices = tuple(
    (task, f"--neuron LIF {length} --lr {rate} --validation --seeds 3 4 5")
    for task, length in TASKS.items()
    for rate in RATES
)

# Digits that move, ten passes: the recipe beside the GRU, whose rate is the best of these on
# validation data.
SHIFTED = "--epochs 10 --batch 25 --shift 1 --smoothing 0.1"
SHIFTED_RATE = "1e-2"
SHIFTED_CHOICES: Choices = tuple(
    ("row_digits", f"--baseline gru {SHIFTED} --lr {rate} --validation --seeds 5 6")
    for rate in RATES
)

# every run of the tables, in their order
RUNS: Choices = (
    *(("row_digits", f"--layer {name} {THREE}") for name in networks.SPIKING + networks.READOUTS),
    *(("row_digits", f"--readout {name} {THREE}") for name in networks.READOUTS[1:]),
    ("row_digits", f"--recurrent {THREE}"),
    *(("row_digits", f"--baseline {name} {THREE}") for name in networks.BASELINES[:-1]),
    # its best learning rate of four on the validation digits; the others use the script's default
    ("row_digits", f"--baseline gru --lr 5e-3 {THREE}"),
    *(
        (task, f"--neuron {name} {length} --lr {RATE} {THREE}")
        for task, length in TASKS.items()
        for name in (WORDS if task == "words" else NEURONS)
    ),
    # its own rate, chosen as that of the neurons
    *((task, f"--baseline gru {length} --lr 2e-2 {THREE}") for task, length in TASKS.items()),
    *(
        ("events", f"{name} --epochs 10 --smoothing 0.1 --lr {rate} {THREE}")
        for name in EVENTS
        # the GRU's rate is its own here too
        for rate in ["2e-2" if "gru" in name else RATE]
    ),
    *(("spike_trains", arguments) for arguments in spike_trains.RUNS),
    ("row_digits", f"--neuron SEAdLIF --recipe --delays 4 --halflives 2 20 {SHIFTED} {FIVE}"),
    ("row_digits", f"--baseline gru {SHIFTED} --lr {SHIFTED_RATE} {FIVE}"),
    *(("vowels", f"--layer {name} {FIVE}") for name in networks.SPIKING + networks.READOUTS),
    *(("vowels", f"--readout {name} {FIVE}") for name in networks.READOUTS[1:]),
    ("vowels", f"--recurrent {FIVE}"),
    *(("vowels", f"--baseline {name} {FIVE}") for name in networks.BASELINES),
    ("rate_digits", THREE),
    ("memorise", THREE),
    ("language", THREE),
    ("language", f"--layer LIF {THREE}"),
    ("cartpole", THREE),
    ("cartpole", f"--blind --epochs 2000 {THREE}"),
    ("cartpole", f"--blind --forget --epochs 2000 {THREE}"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.table --help``."""
    parser = argparse.ArgumentParser("python -m examples.table", description=__doc__)
    parser.add_argument("--run", nargs="*", metavar="TASK", help="first make the missing runs")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    if options.run is not None:
        code = run_missing(options.run)
        if code:
            return code
    made = tables(read_rows(common.RESULTS))
    pages = {TUTORIALS / f"{page}.md": {name: made[name]} for page, name in TABLES.items()}
    del made["digits"]  # only of its tutorial
    pages[README] = made
    updated = {path: update_tables(path.read_text(), each) for path, each in pages.items()}
    changed = [path for path, text in updated.items() if path.read_text() != text]
    for path in changed:
        if options.check:
            print(f"{path.name} is out of date: python -m examples.table", file=sys.stderr)
            continue
        with atomic_replace(path) as unfinished:
            unfinished.write_text(updated[path])
    return int(bool(changed and options.check))


def run_missing(tasks: Sequence[str]) -> int:
    """Make the runs whose rows are incomplete; of some tasks, or of all."""
    for task, arguments in itertools.chain(CHOICES, SHIFTED_CHOICES, RUNS):
        seeds = arguments.partition("--seeds ")[2].split()
        rows = recorded(task, arguments)
        command = f"python -m examples.{task} {arguments}"
        if (tasks and task not in tasks) or len(rows) == len(seeds):
            continue
        print(command, flush=True)
        script = importlib.import_module(f"examples.{task}")
        code: int = script.main([*shlex.split(arguments), "--record"])
        if code:
            return code
    return 0


def validated(rate: str, choices: Choices) -> list[float]:
    """Return the accuracies on validation data at a rate, of every task and seed."""
    chosen = (choice for choice in choices if f" --lr {rate} " in choice[1])
    return [row.scores["accuracy"] for choice in chosen for row in recorded(*choice)]


Runs = list[common.Row]  # of one command, a seed each


def recorded(task: str, arguments: str) -> Runs:
    """Return the rows of a command."""
    folder = common.RESULTS / "validation" if "--validation" in arguments else common.RESULTS
    command = f"python -m examples.{task} {arguments}"
    return [row for row in common.read(folder / f"{task}.jsonl") if row.command == command]


def read_rows(folder: Path) -> dict[tuple[str, str], Runs]:
    """Group the rows by task and configuration, those of :data:`RUNS` first, in their order."""
    found: dict[tuple[str, str], Runs] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in common.read(path):
            found.setdefault((row.task, row.configuration), []).append(row)
    order = [f"python -m examples.{task} {arguments}" for task, arguments in RUNS]

    # rows of commands that are not in RUNS come last
    def place(key: tuple[str, str]) -> int:
        command = found[key][0].command
        return order.index(command) if command in order else len(order)

    return {key: found[key] for key in sorted(found, key=place)}


def tables(found: dict[tuple[str, str], Runs]) -> dict[str, str]:
    """Return every table by its name."""
    return {
        "neurons": neurons(found),
        "recipe": recipe(found),
        "events": events(found),
        "spike_trains": spike_trains.table(
            [row for (task, _), rows in found.items() if task == spike_trains.TASK for row in rows]
        ),
        "digits": digits(found),
        "results": results(found),
    }


def update_tables(page: str, made: Mapping[str, str]) -> str:
    """Return the page with these tables between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, table in made.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        literal = table.replace("\\", r"\\")  # a replacement reads backslashes as escapes
        page, times = re.subn(pattern, rf"\g<1>{literal}\g<2>", page, flags=re.DOTALL)
        if times != 1:
            raise ValueError(f"a page needs one <!-- {name} --> ... <!-- /{name} -->, has {times}.")
    return page


def neurons(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network of :mod:`examples.networks`, with both of its tasks."""
    lines = [
        "| network | digits row by row | spikes | parameters | CPU seconds "
        "| spoken vowels | spikes | parameters | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, name in found:
        if task != "row_digits" or any(part in name for part in (RECIPE, SMOOTHED, MOVED)):
            continue
        cells = [
            cell
            for other in ("row_digits", "vowels")
            for cell in _cells(found.get((other, name), []))
        ]
        lines.append(f"| {_named(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def recipe(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network of ``--neuron``, and the GRU's, with all three tasks."""
    lines = [
        "| network | digits row by row | CPU seconds | spoken vowels | CPU seconds "
        "| made-up words | CPU seconds | spikes | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    of_tasks = dict.fromkeys(name for task, name in found if task in TASKS)
    for name in of_tasks:
        if (RECIPE not in name and SMOOTHED not in name) or MOVED in name:
            continue
        cells = []
        for task in TASKS:
            accuracy, _, _, seconds = _cells(found.get((task, name), []))
            cells += [accuracy, seconds]
        _, spikes, parameters, _ = _cells(found.get(("row_digits", name), []))
        shown = name.replace(RECIPE, "").replace(SMOOTHED, "")
        lines.append(f"| {shown} | {' | '.join([*cells, spikes, parameters])} |")
    return "\n".join(lines) + "\n"


def events(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network on the spoken digits as events: accuracy and cost."""
    lines = [
        "| network | spoken digits | spikes | operations | with the zeros | parameters "
        "| CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, name), rows in found.items():
        if task != "events":
            continue
        counted = {
            key: f"{statistics.mean(values):,.0f}"
            for key in ("spikes", "operations", "dense")
            if (values := [row.scores[key] for row in rows if key in row.scores])
        }
        accuracy, _, parameters, seconds = _cells(rows)
        costs = [counted.get(key, "") for key in ("spikes", "operations", "dense")]
        shown = name.replace(RECIPE, "").replace(SMOOTHED, "")
        lines.append(f"| {shown} | {' | '.join([accuracy, *costs, parameters, seconds])} |")
    return "\n".join(lines) + "\n"


def digits(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network whose training digits move, with its command."""
    lines = [
        "| network | held-out digits | spikes | parameters | CPU seconds | command |",
        "|---|---|---|---|---|---|",
    ]
    for (task, name), rows in found.items():
        if task == "row_digits" and MOVED in name:
            shown = name.replace(MOVED, "").replace(SMOOTHED, "").replace(", tt.recipe", "")
            lines.append(f"| {shown} | {' | '.join(_cells(rows))} | `{rows[0].command}` |")
    return "\n".join(lines) + "\n"


def results(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per command."""
    lines = [
        "| task | network | result | runs | parameters | seconds | CPU seconds | date | command |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, name), rows in found.items():
        seconds = statistics.mean(row.seconds for row in rows)
        cpu = statistics.mean(row.cpu_seconds for row in rows)
        dates = " to ".join(sorted({row.date for row in rows}))
        lines.append(
            f"| {task} | {_named(name)} | {_score(rows)} | {len(rows)} | {rows[0].parameters:,} "
            f"| {_seconds(seconds)} | {_seconds(cpu)} | {dates} | `{rows[0].command}` |"
        )
    return "\n".join(lines) + "\n"


def _cells(rows: Runs) -> list[str]:
    if not rows:
        return ["", "", "", ""]
    rates = [row.scores["firing rate"] for row in rows if "firing rate" in row.scores]
    return [
        common.percent([row.scores["accuracy"] for row in rows]),
        f"{statistics.mean(rates):.2f}" if rates else "",
        f"{rows[0].parameters:,}",
        _seconds(statistics.mean(row.cpu_seconds for row in rows)),
    ]


def _score(rows: Runs) -> str:
    found = {name: [row.scores[name] for row in rows] for name in rows[0].scores}
    if "accuracy" in found:
        return common.percent(found["accuracy"])
    return ", ".join(f"{name} {common.spread(values)}" for name, values in found.items())


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _named(configuration: str) -> str:
    """Add the ReLU that follows a layer without spikes to its name."""
    return f"{configuration} and ReLU" if configuration in networks.READOUTS else configuration


if __name__ == "__main__":
    sys.exit(main())
