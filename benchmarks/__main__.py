"""Run the benchmarks: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import ON_GPU, Case, all_cases, quick
from benchmarks.device import Device
from benchmarks.figure import draw
from benchmarks.libraries import LIBRARIES, Library
from benchmarks.machine import machine
from benchmarks.options import PARTIAL, RESULTS, parse
from benchmarks.process import Process
from benchmarks.results_file import Run
from benchmarks.rounds import run_case
from benchmarks.table import amount, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print each result, and write table, JSON and plot.

    Args:
        arguments: of the command line; those of the process where ``None``.

    Returns:
        The exit code: 0, 1 where traceTorch failed on a case or differs from the CPU, 2 for
        arguments that fit nothing, and where there is no such device.
    """
    options = parse(arguments)
    missing = Device(options.device or "cpu").missing_reason()
    if missing is not None:
        print(missing)
        return 2
    if options.again and not (options.out / "results.json").is_file():
        print(f"there are no results in {options.out} to put the cases into")
        return 2
    cases = chosen_cases(options)
    if not cases:
        print("no case has such a name; there are:", *(c.name for c in all_cases()), sep="\n  ")
        return 2
    rounds = options.rounds or (1 if options.quick else 5)
    run = Run(machine(), {"rounds": rounds, "quick": options.quick, "left": []}, cases=cases)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        processes = start(chosen_libraries(options), run, stack, options.device)
        for case in [*cases]:
            if time.perf_counter() - started > 60 * options.minutes:
                run.settings["left"].append(case.name)
                cases.remove(case)
                continue
            # a quick run needs one measurement per case, not a steady number
            found = run_case(case, processes, rounds, 0.0 if options.quick else 0.12)
            run.results[case.name] = found
            print(case.name, flush=True)
            for name, answer in found.items():
                value = run.value(case.name, name)
                text = answer["failed"] if value is None else amount(case, value)
                cold = answer.get("cold")
                text += "" if cold is None else f" hot, {amount(case, cold)} cold"
                density = answer.get("density")
                spikes = "" if density is None else f"   (spikes {density:.3f})"
                print(f"    {name:22} {text}{spikes}{agreed(answer)}", flush=True)
    run.settings["took"] = round(time.perf_counter() - started)
    write(run, options)
    ours = [run.results[case.name].get("tracetorch", {"failed": "absent"}) for case in cases]
    return 1 if any("failed" in answer for answer in ours) else 0


def agreed(answer: dict[str, Any]) -> str:
    """Tell how a case on a device agrees with the CPU, where it was compared."""
    found = answer.get("agreement")
    if not found:
        return ""
    gradient = f", gradients to {found['gradient']:.1e}" if "gradient" in found else ""
    return f"   (as on the CPU: {found['equal']:.2%} of spikes{gradient})"


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """Select the cases that the options name, on small shapes with ``--quick``."""
    cases = all_cases()
    if options.device and not options.cases:
        cases = [case for case in cases if case.kind in ON_GPU]
    if options.cases:
        cases = [case for case in cases if any(word in case.name for word in options.cases)]
    return [quick(case) for case in cases] if options.quick else cases


def chosen_libraries(options: argparse.Namespace) -> list[Library]:
    """Select traceTorch and the peers that the options name."""
    found = []
    for library in LIBRARIES:
        if options.peers is not None:
            wanted = library.name in options.peers
        else:
            wanted = not library.opt_in or options.compiled
        there = (options.device or "cpu") in library.devices
        if (wanted and there) or library.name == "tracetorch":
            found.append(library)
    return found


def start(
    libraries: Sequence[Library],
    run: Run,
    stack: contextlib.ExitStack,
    device: str | None = None,
) -> dict[str, Process]:
    """Start a worker per library; the reasons of those that cannot run go to ``run.absent``."""
    processes: dict[str, Process] = {}
    for library in libraries:
        reason = ""
        if not library.python.exists():
            reason = "it is not installed; make bench-peers"
        else:
            process = Process(library, device or "cpu", compares=device is not None)
            stack.enter_context(process)
            answer = process.version()
            reason = answer.get("failed", "")
        if reason:
            run.absent[library.name] = reason
            print(f"{library.name} is left out: {reason}")
        else:
            processes[library.name] = process
            run.versions[library.name] = answer["version"]
            if answer["device"]:
                run.machine["device"] = answer["device"]
    return processes


def write(run: Run, options: argparse.Namespace) -> None:
    """Write table, JSON and plot into the folder of results."""
    whole = RESULTS / options.device if options.device else RESULTS
    out = options.out or (PARTIAL if options.quick or options.cases else whole)
    out.mkdir(parents=True, exist_ok=True)
    if options.again:
        run = Run.from_json(json.loads((out / "results.json").read_text())).with_rows_of(run)
    (out / "table.md").write_text(table(run))
    (out / "results.json").write_text(json.dumps(run.as_json(), indent=1) + "\n")
    drawn = draw(run, out)
    print(", ".join(["table.md", "results.json", *drawn]), f"are in {out}")


if __name__ == "__main__":
    sys.exit(main())
