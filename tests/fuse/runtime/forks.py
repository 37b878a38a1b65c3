"""Run a function in a forked child, which is ended where it waits for ever."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest


def forks(test: Any) -> Any:
    """Mark a test that forks."""
    warns = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")(warns(test))


def forked(work: Callable[[], bool]) -> Callable[[], bool]:
    """Begin a child; what is returned waits for its end, and tells whether its work was right."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        right = False
        try:
            right = work()
        finally:
            os._exit(0 if right else 1)
    return lambda: os.waitpid(child, 0)[1] == 0
