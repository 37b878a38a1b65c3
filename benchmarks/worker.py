"""Worker process of one library: answers requests of its parent, a line of JSON each."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from benchmarks.cases import Case
from benchmarks.memory import peak_of
from benchmarks.task import Adapter, Task

ENOUGH = 0.12  # seconds of one measurement
MOST = 2000  # runs of one measurement
ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def measure(task: Task, seconds: float, chill: Callable[[], None] | None = None) -> float:
    """Return the median seconds of the runs that fit in ``seconds``, of one at least.

    Args:
        task: what to run.
        seconds: how long to go on.
        chill: what runs between two runs and is not timed; the runs are *hot* where ``None``.
    """
    times: list[float] = []
    started = time.perf_counter()
    while not times or (time.perf_counter() - started < seconds and len(times) < MOST):
        if chill is not None:
            chill()
        before = time.perf_counter()
        task.run()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def product() -> Callable[[], None]:
    """Return what makes the next run cold: a product of two matrices of 1024 x 1024 numbers.

    It takes the caches of data and of code, and leaves the threads of PyTorch spinning, as any
    other part of a training step does.
    """
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        a = torch.ones(1024, 1024)
        return lambda: torch.mm(a, a)
    import numpy as np

    b = np.ones((1024, 1024), dtype=np.float32)
    return lambda: np.dot(b, b)


class Worker:
    """Prepare and measure one case at a time."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.task: Task | None = None
        self.slow = False
        self.chill = product()

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Build a case and run it until it is warm."""
        built = Case(**{**case, "only": tuple(case["only"])})
        reason = self.adapter.unsupported_reason(built)
        if reason is not None:
            return {"unsupported": reason}
        _limit_threads(built.threads)
        if built.peak:
            return peak_of(self.adapter, built)
        # the first run compiles, the second shows whether a run is slow
        before = time.perf_counter()
        self.task = self.adapter.prepare(built)
        self.task.run()
        first = time.perf_counter() - before
        again = measure(self.task, 0.0)
        self.slow = again > 1
        if not self.slow:
            measure(self.task, ENOUGH)
        return {
            "first_call": first,
            "seconds": again,
            "density": _number_or_none(self.task.density()),
        }

    def measure(self, seconds: float = ENOUGH) -> dict[str, Any]:
        """Time the prepared case, hot and cold."""
        if self.task is None:
            raise RuntimeError("nothing is prepared")
        # an unmeasured run: another library has used the caches since the last one
        if not self.slow:
            self.task.run()
        hot = measure(self.task, seconds)
        # a run of a second is as long cold as hot
        return {
            "seconds": hot,
            "cold": hot if self.slow else measure(self.task, seconds, self.chill),
        }

    def drop(self) -> dict[str, Any]:
        """Release the prepared case."""
        self.task = None
        gc.collect()
        return {}

    def version(self) -> dict[str, Any]:
        """Return the installed version."""
        return {"version": self.adapter.version()}


def _number_or_none(density: float) -> float | None:
    """Replace NaN, which JSON does not have."""
    return None if math.isnan(density) else density


def _limit_threads(count: int) -> None:
    """Limit the threads of PyTorch, or the cores of a process without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif CORES:  # JAX takes no number of threads; its pool stays on the cores it began with
        os.sched_setaffinity(0, CORES[:count])


def serve(name: str, requests: TextIO, replies: TextIO) -> None:
    """Answer requests until they end."""
    if name == "previous":  # it has our import name: ours must not be found first
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    worker = Worker(importlib.import_module(f"benchmarks.adapters.{name}"))
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as failure:  # any failure of a peer is a result, not our end
            answer = {"failed": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not disturb the replies
    serve(sys.argv[1], sys.stdin, replies)
