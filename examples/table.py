"""Write the tables of the pages from the rows in results/; ``--run`` makes missing runs first.

``python -m examples.table`` updates the tables; ``--check`` only reports whether they are up to
date; ``--run`` first makes every run whose rows are missing, one after the other.
"""

from __future__ import annotations

import argparse
import importlib
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
MOVED = ", shifted by 1"  # in the name of a network whose training digits move
THREE = "--seeds 0 1 2"
FIVE = "--seeds 0 1 2 3 4"

# Networks of any neuron by one recipe beside baselines, and the tasks on which each is measured:
# many neurons on the digits, few on the others.
NEURONS = (*networks.SPIKING, *networks.READOUTS, *tt.neurons.__all__)
FEW = ("LIF", "ALIF", "AdLIF", "SEAdLIF")
BASELINES = tuple(f"--baseline {name}" for name in networks.BASELINES[:-1])
TASKS = {
    "row_digits": "--epochs 5 --smoothing 0.1",
    "vowels": "--epochs 30 --smoothing 0.1",
    "words": "--epochs 10 --smoothing 0.1",
}
# What the tutorial on events adds step by step, and what it compares with.
TEN = "--epochs 10 --smoothing 0.1"
EVENTS = (
    *(f"--neuron {name} {TEN}" for name in ("LIF", "AdLIF", "SEAdLIF")),
    *(f"--neuron {name} --delays 8 {TEN}" for name in ("LIF", "SEAdLIF")),
    f"--baseline mlp-of-mean {TEN} --lr 1e-2",
    f"--baseline gru {TEN} --lr 2e-2",
)
# The rate of the GRU, on the validation data of all three tasks the best of those of recipe_parts.
GRU_RATE = "2e-2"
Choices: TypeAlias = tuple[tuple[str, str], ...]

# Digits that move, ten passes: the recipe beside the GRU, whose rate is the best of these on
# validation data.
SHIFTED = "--epochs 10 --batch 25 --shift 1 --smoothing 0.1"
RATES = ("5e-3", "1e-2", "2e-2")
SHIFTED_RATE = "1e-2"
CHOICES: Choices = tuple(
    ("row_digits", f"--baseline gru {SHIFTED} --lr {rate} --validation --seeds 5 6")
    for rate in RATES
)

# every run of the tables, in their order
RUNS: Choices = (
    *(
        (task, f"{network} {length} {THREE}")
        for task, length in TASKS.items()
        for network in (
            *(f"--neuron {name}" for name in (NEURONS if task == "row_digits" else FEW)),
            *(("--recurrent",) if task == "row_digits" else ()),
            *BASELINES,
        )
    ),
    *((task, f"--baseline gru {length} --lr {GRU_RATE} {THREE}") for task, length in TASKS.items()),
    *(("events", f"{arguments} {THREE}") for arguments in EVENTS),
    *(("spike_trains", arguments) for arguments in spike_trains.RUNS),
    ("row_digits", f"--neuron SEAdLIF --delays 4 {SHIFTED} {FIVE}"),
    ("row_digits", f"--baseline gru {SHIFTED} --lr {SHIFTED_RATE} {FIVE}"),
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
    for task, arguments in (*CHOICES, *RUNS):
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


def validated(rate: str) -> list[float]:
    """Return the accuracies on validation data at a rate, of every choice and seed."""
    chosen = (choice for choice in CHOICES if f" --lr {rate} " in choice[1])
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
    for (task, name), rows in found.items():
        ways = {re.sub(r" --seeds( \d+)+", "", row.command) for row in rows}
        if len(ways) > 1:
            raise ValueError(
                f"{task}: rows of {name} are of different runs, {' and '.join(sorted(ways))}. One "
                "mean of them means nothing: record all seeds by the same command."
            )
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
    """Return a line per network of :mod:`examples.networks`, with all three tasks."""
    lines = [
        "| network | digits row by row | CPU seconds | spoken vowels | CPU seconds "
        "| made-up words | CPU seconds | spikes | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for task, name in found if task in TASKS and MOVED not in name):
        cells = []
        for task in TASKS:
            accuracy, _, _, seconds = _cells(found.get((task, name), []))
            cells += [accuracy, seconds]
        _, spikes, parameters, _ = _cells(found.get(("row_digits", name), []))
        lines.append(f"| {_named(name)} | {' | '.join([*cells, spikes, parameters])} |")
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
        lines.append(f"| {name} | {' | '.join([accuracy, *costs, parameters, seconds])} |")
    return "\n".join(lines) + "\n"


def digits(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network whose training digits move, with its command."""
    lines = [
        "| network | held-out digits | spikes | parameters | CPU seconds | command |",
        "|---|---|---|---|---|---|",
    ]
    for (task, name), rows in found.items():
        if task == "row_digits" and MOVED in name:
            shown = name.removesuffix(MOVED)
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
