from __future__ import annotations

import pytest

from tests.scale_out.processes import run_together


def test_hanging_process_is_aborted_with_a_traceback() -> None:
    with pytest.raises(
        AssertionError, match=r'(?s)Fatal Python error: Aborted.*"<string>", line 1'
    ):
        run_together([["-c", "pass"], ["-c", "import time; time.sleep(60)"]], seconds=2)


def test_failing_process_ends_the_others() -> None:
    with pytest.raises(AssertionError, match="ValueError: this one"):
        run_together(
            [["-c", "import time; time.sleep(60)"], ["-c", "raise ValueError('this one')"]]
        )
