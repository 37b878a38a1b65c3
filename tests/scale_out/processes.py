"""Run processes side by side, and end all of them when one fails or time is up."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from tests.processes import Child


def run_together(commands: Sequence[Sequence[str]], seconds: float = 300) -> list[str]:
    """Run ``python ARGUMENTS...`` for each; return the outputs, or fail with them."""
    children = [Child(*arguments, merged=True) for arguments in commands]
    try:
        deadline = time.monotonic() + seconds
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                break
            if time.monotonic() > deadline:
                for child in children:
                    child.send_signal(signal.SIGABRT)  # faulthandler prints its stack
                    child.wait(60)
                break
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.wait()
    printed = [child.output for child in children]
    assert not any(child.returncode for child in children), "\n".join(printed)
    return printed
