"""Fuzz on: ``python -m tests.fuzz --seed 1000 --seconds 600``; tells the seed of what differs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.fuse.codegen.test_c_kernel import CC
from tests.fuzz import circuits, networks, steps
from tests.fuzz.draw import source


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare random steps and networks until the time is over; return how many differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next are counted on")
    parser.add_argument("--seconds", type=float, default=600.0, help="for how long")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    end, seed, differ, refused = time.monotonic() + options.seconds, options.seed, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while True:
            # every tenth as a circuit, which takes processes too
            kinds = ["step", "network", *["circuit"] * (circuits.CAN_RUN and seed % 10 == 0)]
            for kind in kinds:
                try:
                    if kind == "network":
                        reason = networks.check(seed)
                    elif kind == "circuit":
                        reason = circuits.check(seed, Path(folder) / f"circuit_{seed}")
                    else:
                        # every tenth in C and in JavaScript, which take a process each
                        in_c = CC is not None and seed % 10 == 0
                        reason = steps.check(seed, Path(folder) if in_c else None)
                        if steps.NODE is not None and seed % 10 == 0:
                            steps.check_javascript([seed])
                except Exception as failure:
                    differ += 1
                    print(f"{kind} {seed}: {type(failure).__name__}: {failure}", flush=True)
                    traceback.print_exc(limit=-3, file=sys.stdout)
                    if kind == "step":
                        print(source(seed, monitors=True), flush=True)
                else:
                    refused += reason is not None
                    if reason is not None:
                        print(f"{kind} {seed} is refused: {reason}", flush=True)
            seed += 1
            if time.monotonic() >= end:
                break
    count = seed - options.seed
    print(f"{count} steps, {count} networks: {differ} differ, {refused} refused")
    return differ


if __name__ == "__main__":
    sys.exit(bool(main()))
