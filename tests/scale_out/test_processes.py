from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.scale_out import processes
from tests.scale_out.processes import run_together


def test_hanging_processes_are_aborted_with_a_traceback_and_a_failing_one_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    asleep = ["-c", f"import time; open({str(started)!r}, 'w').close(); time.sleep(600)"]
    aborted = r'(?s)Fatal Python error: Aborted.*"<string>", line 1'
    calls = itertools.count()

    def monotonic() -> float:
        """Begin at 0; its time is up once it has started, however long that takes."""
        return math.inf if next(calls) and started.exists() else 0.0

    clock = SimpleNamespace(sleep=time.sleep, monotonic=monotonic)
    with monkeypatch.context() as patched:
        patched.setattr(processes, "time", clock)
        with pytest.raises(AssertionError, match=aborted):
            run_together([["-c", "pass"], asleep], seconds=2)
    with pytest.raises(AssertionError, match="ValueError: this one"):
        run_together([asleep, ["-c", "raise ValueError('this one')"]])
