from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests import cases
from tracetorch.fuse.runtime.threads import parallel_for


@pytest.mark.parametrize("tasks", [1, 2, 7, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once(tasks: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls: list[range] = []
        parallel_for(lambda first, last: calls.append(range(first, last)), tasks, small=False)
        assert all(calls)  # none is empty
        assert sorted(task for each in calls for task in each) == list(range(tasks))
    finally:
        torch.set_num_threads(before)


def test_calls_may_nest_and_run_in_several_threads() -> None:
    done: list[int] = []

    def inner(first: int, last: int) -> None:
        for _ in range(first, last):
            parallel_for(lambda f, t: done.extend(range(f, t)), 3, small=False)

    callers = [threading.Thread(target=parallel_for, args=(inner, 8), kwargs={"small": False})] * 1
    callers += [threading.Thread(target=parallel_for, args=(inner, 8), kwargs={"small": False})]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(done) == 2 * 8 * 3


def test_error_in_a_task_is_raised() -> None:
    def fail(first: int, last: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parallel_for(fail, 16, small=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_runs_kernels() -> None:
    layer = cases.layer("LIF", 500)
    x = cases.sequence(300, 8, 500, dtype=torch.float32)  # large enough for the pool
    expected = layer.forward_sequence(x)[0].sum().item()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a DataLoader's worker does: PyTorch's own pool is gone
        layer.zero_states()
        os.write(write, str(layer.forward_sequence(x)[0].sum().item()).encode())
        os._exit(0)
    os.close(write)
    assert float(os.read(read, 100)) == expected
    os.waitpid(child, 0)


def test_thread_may_outlive_the_main_thread() -> None:
    program = """
import threading, torch
from tracetorch.fuse.runtime.threads import parallel_for

torch.set_num_threads(2)
main = threading.main_thread()
done = []

def work():
    main.join()
    parallel_for(lambda first, last: done.extend(range(first, last)), 9, small=False)
    print(sorted(done) == list(range(9)))

threading.Thread(target=work).start()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "True\n", ran.stderr


def test_pool_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracetorch.fuse.runtime.threads._pool", None)
    monkeypatch.setattr("tracetorch.fuse.runtime.threads._size", 0)
    before, seen = torch.get_num_threads(), set()

    def wait(first: int, last: int) -> None:
        seen.add(threading.current_thread())
        time.sleep(0.001)  # long enough for the others to begin

    torch.set_num_threads(3)
    try:
        for _ in range(10):
            parallel_for(wait, 12, small=False)
    finally:
        torch.set_num_threads(before)
    assert 1 < len(seen) <= 3
