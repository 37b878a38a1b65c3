"""Measure a case in all libraries by turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import Case
from benchmarks.process import Process

SLOW = 1.0  # seconds of a run from which two rounds are enough
VERY_SLOW = 5.0  # from which the second run of the preparation is enough


def run_case(
    case: Case, processes: Mapping[str, Process], rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Measure a case in each library.

    Returns:
        By library ``seconds`` of a run in a loop of nothing else and ``cold`` after a product, the
        medians of the rounds, and the ``density`` of spikes.
    """
    if case.peak:
        return _each_fresh(case, processes)
    found: dict[str, dict[str, Any]] = {}
    for name, process in processes.items():
        if case.only and name not in case.only:
            continue
        answer = process.prepare(case)
        if "unsupported" not in answer:
            # its preparation has measured a very slow case, once is enough
            slow = answer.get("seconds", 0.0) > VERY_SLOW
            times = [answer["seconds"]] if slow else []
            found[name] = {**answer, "rounds": times, "cold_rounds": [*times]}
    # by turns: a change of the machine's speed meets all libraries alike
    for number in range(rounds):
        for name, result in found.items():
            if "failed" in result or number >= _rounds(result["seconds"], rounds):
                continue
            answer = processes[name].measure(seconds)
            if "failed" in answer:
                result["failed"] = answer["failed"]
            else:
                result["rounds"].append(answer["seconds"])
                result["cold_rounds"].append(answer["cold"])
    for name, result in found.items():
        if result["rounds"]:
            result["seconds"] = statistics.median(result["rounds"])
            result["cold"] = statistics.median(result["cold_rounds"])
        processes[name].drop()
    return found


def _rounds(seconds: float, wanted: int) -> int:
    """Return the number of rounds for a run that takes ``seconds``."""
    if seconds > VERY_SLOW:
        return 0
    return min(wanted, 2) if seconds > SLOW else wanted


def _each_fresh(case: Case, processes: Mapping[str, Process]) -> dict[str, dict[str, Any]]:
    """Measure each library in a new process, whose peak memory no earlier case has raised."""
    found = {}
    for name, process in processes.items():
        if case.only and name not in case.only:
            continue
        with Process(process.library, process.device) as fresh:
            answer = fresh.prepare(case)
        if "unsupported" not in answer:
            found[name] = answer
    return found
