from __future__ import annotations

import pytest

from tests.scale_out.processes import run_together


def test_hanging_processes_are_aborted_with_a_traceback_and_a_failing_one_ends_the_others() -> None:
    asleep = ["-c", "import time; time.sleep(60)"]
    aborted = r'(?s)Fatal Python error: Aborted.*"<string>", line 1'
    with pytest.raises(AssertionError, match=aborted):
        run_together([["-c", "pass"], asleep], seconds=2)
    with pytest.raises(AssertionError, match="ValueError: this one"):
        run_together([asleep, ["-c", "raise ValueError('this one')"]])
