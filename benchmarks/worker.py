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
from benchmarks.device import Device
from benchmarks.memory import peak_of
from benchmarks.task import Adapter, Task

ENOUGH = 0.12  # seconds of one measurement
MOST = 2000  # runs of one measurement
ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def measure(
    task: Task,
    seconds: float,
    chill: Callable[[], None] | None = None,
    wait: Callable[[], None] | None = None,
) -> float:
    """Return the median seconds of the runs that fit in ``seconds``, of one at least.

    Args:
        task: what to run.
        seconds: how long to go on.
        chill: what runs between two runs and is not timed; the runs are *hot* where ``None``.
        wait: returns when the device has done what was begun; ``None`` for the CPU.
    """
    times: list[float] = []
    started = time.perf_counter()
    while not times or (time.perf_counter() - started < seconds and len(times) < MOST):
        if chill is not None:
            chill()
        if wait is not None:
            wait()
        before = time.perf_counter()
        task.run()
        if wait is not None:
            wait()
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
    """Prepare and measure one case at a time.

    Args:
        adapter: of the library.
        device: where its tensors are.
        compares: whether a case is compared with the same on the CPU.
    """

    def __init__(
        self, adapter: Adapter, device: Device | None = None, *, compares: bool = False
    ) -> None:
        self.adapter, self.compares = adapter, compares
        self.device = device or Device()
        self.wait = None if self.device.name == "cpu" else self.device.wait
        self.task: Task | None = None
        self.slow = False
        self.chill: Callable[[], None] | None = None

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Build a case and run it until it is warm."""
        built = Case(**{**case, "only": tuple(case["only"])})
        reason = self.adapter.unsupported_reason(built)
        if reason is not None:
            return {"unsupported": reason}
        _limit_threads(built.threads)
        if self.chill is None:
            with self.device.building():
                self.chill = product()
        if built.peak:
            with self.device.building():
                return peak_of(self.adapter, built, self.device.growth)
        compared = self.compare(built) if self.compares else {}
        if "failed" in compared:
            return compared
        # the first run compiles, the second shows whether a run is slow
        before = time.perf_counter()
        with self.device.building():
            self.task = self.adapter.prepare(built)
        self.task.run()
        self.device.wait()
        first = time.perf_counter() - before
        again = measure(self.task, 0.0, wait=self.wait)
        self.slow = again > 1
        if not self.slow:
            measure(self.task, ENOUGH, wait=self.wait)
        return {
            **compared,
            "first_call": first,
            "seconds": again,
            "density": _number_or_none(self.task.density()),
        }

    def compare(self, case: Case) -> dict[str, Any]:
        """Compare a case with the same on the CPU."""
        from benchmarks.agreement import agreement, disagreement

        found = agreement(self.adapter, case, self.device)
        reason = disagreement(case, found) if found else None
        return {"agreement": found, **({"failed": reason} if reason else {})}

    def measure(self, seconds: float = ENOUGH) -> dict[str, Any]:
        """Time the prepared case, hot and cold."""
        if self.task is None:
            raise RuntimeError("nothing is prepared")
        # an unmeasured run: another library has used the caches since the last one
        if not self.slow:
            self.task.run()
        hot = cold = measure(self.task, seconds, wait=self.wait)
        # a run of a second is as long cold as hot
        if not self.slow:
            cold = measure(self.task, seconds, self.chill, self.wait)
        return {"seconds": hot, "cold": cold}

    def drop(self) -> dict[str, Any]:
        """Release the prepared case."""
        self.task = None
        gc.collect()
        return {}

    def version(self) -> dict[str, Any]:
        """Return the installed version; ``failed`` has the reason where it has no such device."""
        reason = self.device.missing_reason()
        if reason is not None:
            return {"failed": reason}
        return {"version": self.adapter.version(), "device": self.device.description()}


def _number_or_none(density: float) -> float | None:
    """Replace NaN, which JSON does not have."""
    return None if math.isnan(density) else density


def _limit_threads(count: int) -> None:
    """Limit the threads of PyTorch, or the cores of a process without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif CORES:  # JAX takes no number of threads; its pool stays on the cores it began with
        os.sched_setaffinity(0, CORES[:count])


def serve(
    name: str, requests: TextIO, replies: TextIO, device: str = "cpu", compares: str = ""
) -> None:
    """Answer requests until they end."""
    if name == "previous":  # it has our import name: ours must not be found first
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    adapter = importlib.import_module(f"benchmarks.adapters.{name}")
    worker = Worker(adapter, Device(device), compares=bool(compares))
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
    serve(sys.argv[1], sys.stdin, replies, *sys.argv[2:])
