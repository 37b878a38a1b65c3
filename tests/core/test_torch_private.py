"""Test what PyTorch's private names are wrapped in."""

import os
import signal
import threading

import pytest

from tracetorch.core.torch_private import one_trace_at_a_time


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_trace_of_another_thread() -> None:
    tracing, done = threading.Event(), threading.Event()

    @one_trace_at_a_time
    def trace() -> None:
        tracing.set()
        assert done.wait(30)

    thread = threading.Thread(target=trace)
    thread.start()
    assert tracing.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits
        one_trace_at_a_time(lambda: None)()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7
