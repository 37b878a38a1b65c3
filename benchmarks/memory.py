"""Peak memory of one run, above what the process held before it."""

from __future__ import annotations

import gc
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.task import Adapter

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_of(adapter: Adapter, case: Case) -> dict[str, Any]:
    """Growth in bytes, and in units of one input.

    The process must be fresh. A first run on three time steps has libraries loaded and kernels
    compiled. Input and incoming gradient exist before, the gradient of the input does not.
    """
    for short in (replace(case, T=3), replace(case, T=3)):
        adapter.prepare(short).run()
    task = adapter.prepare(case)
    density = task.density()
    if hasattr(task, "grad"):
        _hold_gradient(task)
    gc.collect()
    _forget_peak()
    before = _held()
    task.run()
    growth = _peak() - before
    return {"bytes": growth, "inputs": growth / (4 * case.elements), "density": density}


def _hold_gradient(task: Any) -> None:
    import torch

    task.grad = torch.randn(task.x.shape, generator=torch.Generator().manual_seed(1))


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _forget_peak() -> None:
    if _CLEAR.exists():
        try:
            _CLEAR.write_text("5")
        except OSError:
            return


def _held() -> int:
    return _status("VmRSS") if _STATUS.exists() else _peak()


def _peak() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
