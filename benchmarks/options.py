"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import device
from benchmarks.libraries import NAMES, ROOT

RESULTS = ROOT / "benchmarks" / "results"
PARTIAL = ROOT / "runs" / "benchmarks"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        arguments: of the command line; those of the process where ``None``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure traceTorch beside the peers that are installed "
        "(make bench-peers installs them). Writes a table, JSON and a plot.",
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round: a smoke test")
    parser.add_argument(
        "--cases", nargs="+", metavar="WORD", help="only cases whose name has one of these words"
    )
    parser.add_argument("--rounds", type=int, help="rounds of a case (5; 1 with --quick)")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=NAMES,
        metavar="NAME",
        help=f"only these beside tracetorch, none where empty: {', '.join(NAMES[1:])}",
    )
    parser.add_argument(
        "--device",
        choices=device.NAMES,
        help="run the rows for a GPU there, each compared with the same on the CPU; ends with 2 "
        "where there is none (the CPU without this option, and all rows)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no case after so many; the table names those that are left",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="SpikingJelly under torch.compile too, which takes minutes a shape",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results (benchmarks/results, and the device if there is one; "
        "runs/benchmarks with --quick or --cases)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure the cases again and replace or add their rows in the results in --out",
    )
    options = parser.parse_args(arguments)
    if options.again and (options.out is None or not options.cases):
        parser.error("--again needs --cases, and --out with the results they go into.")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}.")
    return options
