"""The process that has one library: does what its parent asks, a line of JSON each way."""

from __future__ import annotations

import gc
import importlib
import json
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
        if again < 1:
            measure(self.task, ENOUGH)
        return {"first_call": first, "seconds": again, "density": self.task.density()}

    def measure(self, seconds: float = ENOUGH) -> dict[str, Any]:
        """Time the case that is prepared."""
        if self.task is None:
            raise RuntimeError("nothing is prepared")
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


def _threads(count: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif hasattr(os, "sched_setaffinity"):  # JAX takes the cores that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def serve(name: str, requests: TextIO, replies: TextIO) -> None:
    """Answer until the requests end."""
    if importlib.util.find_spec("tracetorch") is not None and name == "previous":
        # the release has our import name; the benchmarks are found already
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    worker = Worker(importlib.import_module(f"benchmarks.adapters.{name}"))  # type: ignore[arg-type]
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
