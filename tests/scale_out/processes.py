"""Run processes side by side, and end all of them when one fails or time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_together(commands: Sequence[Sequence[str]], seconds: float = 300) -> list[str]:
    """Run ``python ARGUMENTS...`` for each; return the outputs, or fail with them."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        children = [
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONFAULTHANDLER": "1"},
            )
            for arguments, output in zip(commands, outputs, strict=True)
        ]
        try:
            deadline = time.monotonic() + seconds
            while any(child.poll() is None for child in children):
                if any(child.poll() for child in children):
                    break
                if time.monotonic() > deadline:
                    for child in children:
                        child.send_signal(signal.SIGABRT)  # faulthandler prints its stack
                        child.wait(10)
                    break
                time.sleep(0.05)
        finally:
            for child in children:
                child.kill()
                child.wait()
        printed = [(output.seek(0), output.read())[1] for output in outputs]
        assert not any(child.returncode for child in children), "\n".join(printed)
        return printed
