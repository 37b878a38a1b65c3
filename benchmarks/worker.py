"""The process that has one library: does what its parent asks, a line of JSON each way."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from benchmarks.cases import Case
from benchmarks.memory import peak_of
from benchmarks.task import Adapter, Task

ENOUGH = 0.12  # seconds of one measurement
MOST = 2000  # runs of one measurement
ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def measure(task: Task, seconds: float) -> float:
    """Median seconds of as many runs as fit in ``seconds``, one at least."""
    times: list[float] = []
    started = time.perf_counter()
    while not times or (time.perf_counter() - started < seconds and len(times) < MOST):
        before = time.perf_counter()
        task.run()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


class Worker:
    """Holds one case at a time."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.task: Task | None = None
        self.slow = False

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Build a case and run it until it is warm."""
        told = Case(**{**case, "only": tuple(case["only"])})
        reason = self.adapter.refuses(told)
        if reason is not None:
            return {"refused": reason}
        _threads(told.threads)
        if told.kind == "memory":
            return peak_of(self.adapter, told)
        before = time.perf_counter()
        self.task = self.adapter.prepare(told)
        self.task.run()
        first = time.perf_counter() - before
        again = measure(self.task, 0.0)
        self.slow = again > 1
        if not self.slow:
            measure(self.task, ENOUGH)
        return {"first_call": first, "seconds": again, "density": _told(self.task.density())}

    def measure(self, seconds: float = ENOUGH) -> dict[str, Any]:
        """Time the case that is prepared."""
        if self.task is None:
            raise RuntimeError("nothing is prepared")
        if not self.slow:
            self.task.run()
        return {"seconds": measure(self.task, seconds)}

    def drop(self) -> dict[str, Any]:
        """Let go of the case."""
        self.task = None
        gc.collect()
        return {}

    def version(self) -> dict[str, Any]:
        """Say what is installed."""
        return {"version": self.adapter.version()}


def _told(density: float) -> float | None:
    return None if math.isnan(density) else density


def _threads(count: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif CORES:  # JAX asks for no number; its pool stays on the cores it began with
        os.sched_setaffinity(0, CORES[:count])


def serve(name: str, requests: TextIO, replies: TextIO) -> None:
    """Answer until the requests end."""
    if name == "previous":  # it has our import name, and the benchmarks are found already
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    worker = Worker(importlib.import_module(f"benchmarks.adapters.{name}"))
    for line in requests:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked.pop("do"))(**asked)
        except Exception as failure:
            answer = {"failed": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not disturb the replies
    serve(sys.argv[1], sys.stdin, replies)
