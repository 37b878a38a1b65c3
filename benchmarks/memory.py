"""Measure the peak memory of one run above what the process held before it."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.task import Adapter

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_of(
    adapter: Adapter, case: Case, growth: Callable[[Callable[[], object]], int]
) -> dict[str, Any]:
    """Measure the growth of peak memory in bytes, and in units of one input.

    The process must be fresh: a library that keeps the memory of a run for the next one is charged
    for it. A first run on three steps loads libraries and compiles kernels; a library that compiles
    for each length is warmed up on the full length too. Input and incoming gradient exist before
    the run, the gradient of the input does not.

    Args:
        adapter: of the library.
        case: what to run.
        growth: returns by how many bytes a run grows the peak memory.
    """
    adapter.prepare(replace(case, T=3)).run()
    task: Any = adapter.prepare(case)
    warm = getattr(task, "warm", None)
    if warm is not None:
        warm()
    grown = growth(task.run)
    return {"bytes": grown, "inputs": grown / (4 * case.elements), "density": task.density()}


def growth_of(run: Callable[[], object]) -> int:
    """Return by how many bytes a run grows the peak memory of the process."""
    gc.collect()
    _trim()  # free memory that the run would use again without growth
    before = resident()
    run()
    return _peak() - before


def _trim() -> None:
    """Return freed memory to the system and reset its peak counter, on Linux."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            _CLEAR.write_text("5")  # resets VmHWM, the peak
        except OSError:
            return


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def resident() -> int:
    return _status("VmRSS") if _STATUS.exists() else _peak()


def _peak() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    # macOS counts bytes, other systems kibibytes
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
