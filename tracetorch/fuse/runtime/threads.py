"""``parallel_for``: run small tasks on a pool of as many threads as PyTorch uses."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_CHUNKS_PER_THREAD = 4

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0


def parallel_for(run: Callable[[int, int], None], tasks: int, *, small: bool) -> None:
    """Call ``run(first, last)`` on ranges that together cover ``tasks``, on several threads.

    ``run`` must release the GIL to gain from it. The calling thread works too, and does all of it
    where the others are busy; so calls may nest and come from several threads at once.

    Args:
        run: does the tasks from ``first`` up to ``last``, in any order among themselves.
        tasks: how many there are.
        small: the work is not worth another thread.

    Example:
        >>> done = []
        >>> parallel_for(lambda first, last: done.extend(range(first, last)), 9, small=False)
        >>> sorted(done) == list(range(9))
        True

    """
    threads = 1 if small else min(torch.get_num_threads(), tasks)
    if threads == 1:
        run(0, tasks)
        return
    chunk = max(1, tasks // (threads * _CHUNKS_PER_THREAD))
    starts = itertools.count(0, chunk)

    def work() -> None:
        while (first := next(starts)) < tasks:
            run(first, min(first + chunk, tasks))

    helpers = _submit(work, threads - 1)
    try:
        work()
    finally:
        # a helper that has not begun finds nothing left to do; one that has must be waited for
        started = [helper for helper in helpers if not helper.cancel()]
    for helper in started:
        helper.result()


def _submit(work: Callable[[], None], count: int) -> list[Future[None]]:
    global _pool, _size
    with _lock:
        if _pool is None or _size < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _size = ThreadPoolExecutor(count, "tracetorch"), count
        helpers: list[Future[None]] = []
        with contextlib.suppress(RuntimeError):  # the main thread has ended: no more are started
            for _ in range(count):
                helpers.append(_pool.submit(work))
        return helpers


def _forget() -> None:
    """Drop the pool after ``fork``: the child has none of its threads."""
    global _pool, _size, _lock
    _lock, _pool, _size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
