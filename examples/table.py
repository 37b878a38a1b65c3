"""Write the tables of README.md from the rows in results/; ``--run`` makes missing runs first.

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
from collections.abc import Iterator, Sequence
from pathlib import Path

from examples import common, networks
from tracetorch.core.files import atomic_replace

README = Path(__file__).parent / "README.md"
THREE = "--seeds 0 1 2"
FIVE = "--seeds 0 1 2 3 4"

# Networks of any neuron, each with the best of six learning rates on the validation digits: the two
# that are best with one seed are run with two more, and the better mean is taken.
CALIBRATED = {
    "--neuron LIF --epochs 10": "8e-2",
    "--neuron SLIF --epochs 10": "4e-2",
    "--neuron RLIF --epochs 10": "8e-2",
    "--neuron BSRLIF --epochs 10": "8e-2",
    "--neuron ALIF --epochs 10": "8e-2",
    "--neuron AdLIF --epochs 10": "8e-2",
    "--neuron SEAdLIF --epochs 10": "2e-2",
    "--neuron RefractoryLIF --epochs 10": "2e-2",
    "--neuron AlphaLIF --epochs 10": "16e-2",
    "--neuron EIF --epochs 10": "1e-2",
    "--neuron QIF --epochs 10": "8e-2",
    "--neuron AdEx --epochs 10": "8e-2",
    "--neuron Izhikevich --epochs 10": "2e-2",
    "--neuron RF --epochs 10": "2e-2",
    "--neuron BRF --epochs 10": "32e-2",
    "--neuron TCLIF --epochs 10": "8e-2",
    "--neuron GLIF --epochs 10": "8e-2",
    "--neuron MultiLevelLIF --epochs 10": "8e-2",
    "--neuron SigmaDelta --epochs 10": "2e-2",
    "--neuron LIF --delays 8 --epochs 10": "16e-2",
    "--neuron SEAdLIF --delays 8 --epochs 10": "16e-2",
}
RATES = ("1e-2", "2e-2", "4e-2", "8e-2", "16e-2", "32e-2")
# their seeds are none of the seeds of the results
CHOICES: tuple[tuple[str, str], ...] = tuple(
    ("row_digits", f"{network} --lr {rate} --validation --seeds 3")
    for network in CALIBRATED
    for rate in RATES
)

# every run of the tables, in their order
RUNS: tuple[tuple[str, str], ...] = (
    *(("row_digits", f"--layer {name} {THREE}") for name in networks.SPIKING + networks.READOUTS),
    *(("row_digits", f"--readout {name} {THREE}") for name in networks.READOUTS[1:]),
    ("row_digits", f"--recurrent {THREE}"),
    *(("row_digits", f"--baseline {name} {THREE}") for name in networks.BASELINES[:-1]),
    # its best learning rate of four on the validation digits; the others use the script's default
    ("row_digits", f"--baseline gru --lr 5e-3 {THREE}"),
    *(("row_digits", f"{network} --lr {rate} {THREE}") for network, rate in CALIBRATED.items()),
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
    page = README.read_text()
    updated = update_tables(page, read_rows(common.RESULTS))
    if options.check:
        if updated != page:
            print("examples/README.md is out of date: python -m examples.table", file=sys.stderr)
        return int(updated != page)
    with atomic_replace(README) as unfinished:
        unfinished.write_text(updated)
    return 0


def run_missing(tasks: Sequence[str]) -> int:
    """Make the runs whose rows are incomplete; of some tasks, or of all."""
    for task, arguments in itertools.chain(CHOICES, finals(), RUNS):
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


def finals() -> Iterator[tuple[str, str]]:
    """Yield the further runs that choose a rate, each network's once its first ones are there."""
    for network in CALIBRATED:
        for rate in finalists(network):
            yield "row_digits", f"{network} --lr {rate} --validation --seeds 4 5"


def finalists(network: str) -> list[str]:
    """Return the two rates that were best with the first seed, of equal ones the lower."""
    return sorted(RATES, key=lambda rate: -statistics.mean(validated(network, rate)[:1]))[:2]


def validated(network: str, rate: str) -> list[float]:
    """Return the accuracies on the validation digits, the first seed's first; those there are."""
    commands = (f"{network} --lr {rate} --validation --seeds {seeds}" for seeds in ("3", "4 5"))
    rows = itertools.chain(*(recorded("row_digits", command) for command in commands))
    return [row.scores["accuracy"] for row in rows]


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


def update_tables(page: str, found: dict[tuple[str, str], Runs]) -> str:
    """Return the page with new tables between ``<!-- name -->`` and ``<!-- /name -->``."""
    tables = {
        "neurons": neurons(found),
        "calibrated": calibrated(found),
        "results": results(found),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        literal = table.replace("\\", r"\\")  # a replacement reads backslashes as escapes
        page, times = re.subn(pattern, rf"\g<1>{literal}\g<2>", page, flags=re.DOTALL)
        if times != 1:
            raise ValueError(f"{README} needs one <!-- {name} --> ... <!-- /{name} -->.")
    return page


def neurons(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network of :mod:`examples.networks`, with both of its tasks."""
    lines = [
        "| network | digits row by row | spikes | parameters | CPU seconds "
        "| spoken vowels | spikes | parameters | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, name in found:
        if task != "row_digits" or ", calibrated" in name:
            continue
        cells = [
            cell
            for other in ("row_digits", "vowels")
            for cell in (_cells(found[other, name]) if (other, name) in found else ["", "", "", ""])
        ]
        lines.append(f"| {_named(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def calibrated(found: dict[tuple[str, str], Runs]) -> str:
    """Return a line per network of ``--neuron``, with its learning rate."""
    lines = [
        "| network | learning rate | digits row by row | spikes | parameters | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for (_, name), rows in found.items():
        if ", calibrated" in name:
            rate = re.search(r"--lr (\S+)", rows[0].command)
            cells = [name.replace(", calibrated", ""), rate[1] if rate else "", *_cells(rows)]
            lines.append(f"| {' | '.join(cells)} |")
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
