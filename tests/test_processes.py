"""The process that forks those of the tests: the error once it has died."""

import subprocess
import sys

import pytest

from tests import processes


def test_a_dead_process_that_forks_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(
        [sys.executable, "-S", "-c", "raise SystemExit(3)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    monkeypatch.setattr(processes, "_server", lambda: server)
    for _ in range(2):  # while it ends, and behind its end
        with pytest.raises(RuntimeError, match="has died, with status 3"):
            processes.run_python("-c", "")
    server.communicate()  # closes its pipes
