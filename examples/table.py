"""The tables of README.md, from the rows in results/; with ``--run``, the runs that are missing.

``python -m examples.table`` writes the tables anew; ``--check`` only says whether they are up to
date; ``--run`` first makes every run whose rows are not there, one after the other, about two hours
on one core.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import common, networks

README = Path(__file__).parent / "README.md"
THREE = "--seeds 0 1 2"
FIVE = "--seeds 0 1 2 3 4"

# every run of the tables, in their order
RUNS: tuple[tuple[str, str], ...] = (
    *(("row_digits", f"--layer {name} {THREE}") for name in networks.SPIKING + networks.READOUTS),
    *(("row_digits", f"--readout {name} {THREE}") for name in networks.READOUTS[1:]),
    ("row_digits", f"--recurrent {THREE}"),
    *(("row_digits", f"--baseline {name} {THREE}") for name in networks.BASELINES[:-1]),
    # the rate that is best for it, of four, on the validation digits; the others' is the scripts'
    ("row_digits", f"--baseline gru --lr 5e-3 {THREE}"),
    *(("vowels", f"--layer {name} {FIVE}") for name in networks.SPIKING + networks.READOUTS),
    *(("vowels", f"--readout {name} {FIVE}") for name in networks.READOUTS[1:]),
    *(("vowels", f"--baseline {name} {FIVE}") for name in networks.BASELINES),
    ("rate_digits", THREE),
    ("memorise", THREE),
    ("language", THREE),
    ("cartpole", THREE),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m examples.table --help``."""
    parser = argparse.ArgumentParser("python -m examples.table", description=__doc__)
    parser.add_argument("--run", nargs="*", metavar="TASK", help="first run what is missing")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    if options.run is not None:
        for task, given in RUNS:
            if options.run and task not in options.run:
                continue
            command = f"python -m examples.{task} {given}"
            seeds = given.partition("--seeds ")[2].split()
            done = [
                row
                for row in common.read(common.RESULTS / f"{task}.jsonl")
                if row.command == command
            ]
            if len(done) < len(seeds):
                print(command, flush=True)
                script = importlib.import_module(f"examples.{task}")
                code: int = script.main([*shlex.split(given), "--record"])
                if code:
                    return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
