"""Shared code of the scripts: command line, seeds, saved models and rows of results."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

import tracetorch
from tracetorch.core.checks import require
from tracetorch.core.files import atomic_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
VALIDATION = "measure on a part of the training data, to choose settings"
Scores = Mapping[str, float]
Data = TypeVar("Data")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Row:
    """Result of a run: task, configuration, scores and cost."""

    task: str
    configuration: str
    seed: int
    scores: Scores  # the first is the one in the table
    parameters: int
    seconds: float
    cpu_seconds: float
    threads: int
    date: str
    command: str
    torch: str
    tracetorch: str


def count(text: str) -> int:
    """Parse a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    """Parse a whole number that PyTorch takes as a seed."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def rate(text: str) -> float:
    """Parse a positive number."""
    value = float(text)  # argparse names what is no number
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


class Options(argparse.ArgumentParser):
    """Parser with the options that all scripts have; a script adds its own.

    Args:
        module: the script's ``__spec__.name`` as it is run, ``examples.vowels``.
        description: text of the help.
        epochs: default of ``--epochs``; a script without one has no such option.
        lr: highest learning rate; a script without one has no such option.
        unit: what ``--epochs`` counts.
    """

    def __init__(
        self,
        module: str,
        description: str,
        epochs: int | None = None,
        lr: float | None = None,
        unit: str = "passes",
    ) -> None:
        super().__init__(f"python -m {module}", description=description)
        task = module.rpartition(".")[2]
        add = self.add_argument
        add("--seeds", type=seed_number, nargs="+", default=[0], metavar="N", help="one run each")
        if epochs is not None:
            add("--epochs", type=count, default=epochs, metavar="N", help=f"{unit} (%(default)s)")
        if lr is not None:
            add(
                "--lr",
                type=rate,
                default=lr,
                metavar="X",
                help="highest learning rate (%(default)s)",
            )
        add("--threads", type=count, default=1, metavar="N", help="CPU threads (%(default)s)")
        add("--quick", action="store_true", help="a run of seconds, as a smoke test")
        add(
            "--record",
            action="store_true",
            help="add the rows to examples/results, for python -m examples.table",
        )
        add(
            "--out",
            type=Path,
            default=Path("runs") / task,
            metavar="DIR",
            help="where models, figures and rows go (%(default)s)",
        )

    def add_table(self) -> None:
        """Add ``--table``, of a script that prints what it has recorded."""
        self.add_argument(
            "--table", action="store_true", help="print the table of the recorded rows, and end"
        )

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse the options; ``options.command`` is the command line itself."""
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = self.parse_args(words)
        if len(set(options.seeds)) < len(options.seeds):
            self.error(f"argument --seeds: must differ from each other, got {options.seeds}")
        if options.quick and options.record:
            self.error("argument --record: not with --quick, whose results mean nothing")
        if options.quick and hasattr(options, "epochs"):
            options.epochs = 1
        options.command = f"{self.prog} {shlex.join(w for w in words if w != '--record')}".strip()
        return options


def run(
    task: str,
    configuration: str,
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], Data],
    learn: Callable[[argparse.Namespace, Data, int], tuple[Model, Scores]],
    draw: Callable[[argparse.Namespace, Data, Model], Figure],
) -> int:
    """Train once per seed; save models, figures and rows; print the mean and standard deviation.

    Args:
        task: the script's name.
        configuration: name of the run among those of the task.
        options: from :class:`Options`.
        load: ``options -> data``; its time is not counted.
        learn: ``(options, data, seed) -> (model, scores)``, training and measuring.
        draw: ``(options, data, model) -> figure``.

    Returns:
        The exit code: 0, 1 where something is missing, 130 after Ctrl-C.
    """
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    try:
        require("matplotlib", "tqdm", extra="examples", by=f"examples.{task}")
        options.out.mkdir(parents=True, exist_ok=True)
        data = load(options)
        for seed in options.seeds:
            # seeded per run, so that a seed gives the same model alone or among others
            torch.manual_seed(seed)
            wall, cpu = time.perf_counter(), time.process_time()
            model, scores = learn(options, data, seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            row = Row(
                task,
                configuration,
                seed,
                scores,
                sum(p.numel() for p in model.parameters() if p.requires_grad),
                round(wall, 2),
                round(cpu, 2),
                options.threads,
                date.today().isoformat(),
                options.command,
                torch.__version__,
                tracetorch.__version__,
            )
            # a file name: a configuration may hold spaces and commas
            name = re.sub(r"[^\w+.]+", "-", configuration)
            path = options.out / f"{name}-seed{seed}.safetensors"
            tracetorch.save(model, path)
            with atomic_replace(path.with_suffix(".png")) as unfinished:
                draw(options, data, model).savefig(unfinished)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            print(
                f"{configuration}, seed {seed}: {shown}; {row.parameters:,} parameters, "
                f"{wall:.1f} s ({cpu:.1f} s of CPU); {path} and .png",
                flush=True,
            )
            rows.append(row)
            record(row, options.out)
            if options.record:
                chooses = getattr(options, "validation", False)
                record(row, RESULTS / "validation" if chooses else RESULTS)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {len(rows)} of {len(options.seeds)} runs are in {options.out}.")
        return 130
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if len(rows) > 1:
        score = next(iter(rows[0].scores))
        values = [row.scores[score] for row in rows]
        print(f"{configuration}: {score} {spread(values)} over {len(rows)} seeds")
    return 0


def spread(values: Sequence[float]) -> str:
    """Format the mean and, of several values, the standard deviation: ``0.951 ± 0.004``."""
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def percent(shares: Sequence[float]) -> str:
    """Format shares in percent with their standard deviation: ``95.1 ± 0.4 %``."""
    mean = f"{100 * statistics.mean(shares):.1f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.1f} %" if len(shares) > 1 else f"{mean} %"


def record(row: Row, folder: Path) -> None:
    """Write a row to ``folder/<task>.jsonl``; it replaces the row of the same seed, if any."""
    path = folder / f"{row.task}.jsonl"
    rows = [old for old in read(path) if _key(old) != _key(row)] + [row]
    rows.sort(key=_key)
    write_lines(path, map(asdict, rows))


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as a line of JSON each, and make the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # an interrupted write must not lose the rows of other runs
    with atomic_replace(path) as unfinished:
        unfinished.write_text("".join(json.dumps(each) + "\n" for each in rows))


def add_line(path: Path, row: Mapping[str, object], key: Sequence[str]) -> None:
    """Add a row to a file of lines of JSON, in place of one with the same values of a key."""
    kept = [old for old in read_lines(path) if any(old.get(name) != row.get(name) for name in key)]
    write_lines(path, [*kept, row])


def rows_path(options: argparse.Namespace, recorded: Path) -> Path:
    """Return the file for rows of ``measure_missing``; quick ones never stand for whole ones."""
    out: Path = options.out
    if options.record:
        return recorded
    return out / (f"quick_{recorded.name}" if options.quick else recorded.name)


def measure_missing(
    options: Options,
    arguments: Sequence[str] | None,
    recorded: Path,
    runs: Callable[[argparse.Namespace], Iterable[dict[str, Any]]],
    measure: Callable[[argparse.Namespace, dict[str, Any]], Mapping[str, object]],
    table: Callable[[Sequence[dict[str, Any]]], str],
) -> int:
    """Print the table of the recorded rows, or measure the runs that a file of rows lacks.

    Args:
        options: of the script; ``--table`` is added.
        arguments: of its command line.
        recorded: the file of lines of JSON in the repository; see ``rows_path``.
        runs: ``options -> runs``, each what tells a row from others, its seed for example.
        measure: ``(options, run) -> columns``, to which the date and the versions are added.
        table: ``rows -> text``.

    Returns:
        The exit code.
    """
    options.add_table()
    parsed = options.parse(arguments)
    if parsed.table:
        print(table(read_lines(recorded)))
        return 0
    torch.set_num_threads(parsed.threads)
    path = rows_path(parsed, recorded)
    for run in runs(parsed):
        if any(run.items() <= row.items() for row in read_lines(path)):
            continue
        row = {
            **run,
            **measure(parsed, run),
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "tracetorch": tracetorch.__version__,
        }
        print(json.dumps(row), flush=True)
        add_line(path, row, list(run))
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file of JSON; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read(path: Path) -> list[Row]:
    """Read the rows of a file of results; none where there is no file."""
    return [Row(**line) for line in read_lines(path)]


def _key(row: Row) -> tuple[str, str, int]:
    return row.task, row.configuration, row.seed
