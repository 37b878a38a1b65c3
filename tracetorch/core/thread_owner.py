"""Own modules by thread: while one thread runs a module, every other thread is refused.

A module that keeps states can serve one sequence at a time. Who runs it is noted here, by ``id``,
and not on the module: copies, pickles and snapshots of it know nothing of threads.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch

from tracetorch.core.torch_private import NO_BACKWARD, current_backward

_owners: dict[int, int] = {}  # the thread that runs a module; single operations are atomic
owner_of: Callable[[int], int | None] = _owners.get
"""The thread that runs the module of an ``id``, or ``None``: a call of no function of ours."""

_turns = itertools.count(1)
_turn = 0  # grows by one with each module that a thread begins to run


class Labelled(Protocol):
    """Module with a name for messages."""

    def state_label(self) -> str:
        """Name the module."""


M = TypeVar("M", bound=Labelled)
P = ParamSpec("P")
R = TypeVar("R")


def take(module: Labelled, waiting: int | None = None) -> bool:
    """Note that this thread runs a module; whether the caller is the outermost, who releases it.

    Args:
        module: the module.
        waiting: the thread that waits for this one, if this one is autograd's.

    Raises:
        ValueError: another thread runs it.
    """
    key, thread = id(module), get_ident()
    if _owners.get(key) == thread:
        return False
    held = _owners.setdefault(key, thread)
    if held == thread:
        global _turn
        _turn = next(_turns)
        return True
    if waiting in (None, held) and _works_for_another_thread():
        return False
    raise ValueError(_refusal(module, held))


def current_turn() -> int:
    """Return the number of runs that have begun so far, or -1 while any thread runs a module.

    For :meth:`owned.undisturbed_since`.
    """
    return -1 if _owners else _turn


def release(module: Labelled) -> None:
    """Note that nobody runs a module any more."""
    _owners.pop(id(module), None)


def run_taken(
    run: Callable[Concatenate[M, P], R], module: M, *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a method of a module that this thread has taken, and release the module behind it."""
    try:
        return run(module, *args, **kwargs)
    finally:
        release(module)


def by_one_thread(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Let a method of a module with states refuse every thread but the one that runs the module."""

    @functools.wraps(method)
    def owning(module: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not take(module):
            return method(module, *args, **kwargs)
        return run_taken(method, module, *args, **kwargs)

    return owning


def check_thread(module: object) -> None:
    """Raise where another thread runs a module.

    Raises:
        ValueError: another thread runs it.
    """
    owner = _owners.get(id(module))
    if owner is not None and owner != get_ident() and not _works_for_another_thread():
        raise ValueError(_refusal(cast(Labelled, module), owner))


def _refusal(module: Labelled, owner: int) -> str:
    name = next((t.name for t in threading.enumerate() if t.ident == owner), str(owner))
    return (
        f"{module.state_label()} is being run by the thread {name!r}, and this is the thread "
        f"{threading.current_thread().name!r}. A layer keeps its states from call to call, so that "
        "two threads cannot run one model at a time: make a copy per thread, "
        "copy.deepcopy(model), or hold a lock for the whole sequence."
    )


def _works_for_another_thread() -> bool:
    """Whether this is one of autograd's own threads, in a backward pass that another waits for."""
    if current_backward() == NO_BACKWARD:
        return False
    # a thread that Python has not started
    return isinstance(threading.current_thread(), threading._DummyThread)


class owned:  # noqa: N801 (used as a function)
    """Note that this thread runs some modules within a block, and refuse every other thread.

    Args:
        modules: the modules; those that the thread runs already stay its own behind the block.
        waiting: the thread that waits for this one, where autograd may run the block in its own.

    Raises:
        ValueError: another thread runs one of them.
    """

    __slots__ = ("modules", "taken", "waiting")

    def __init__(self, modules: Sequence[Labelled], waiting: int | None = None) -> None:
        self.modules = modules
        self.waiting = waiting
        self.taken: list[Labelled] = []

    def __enter__(self) -> owned:
        try:
            for module in self.modules:
                if take(module, self.waiting):
                    self.taken.append(module)
        except BaseException:
            self.__exit__()
            raise
        return self

    def undisturbed_since(self, turn: int) -> bool:
        """Whether nothing has run since :func:`current_turn` gave this, nor ran then.

        What was read of the modules before they were owned then still holds.
        """
        return _turn == turn + len(self.taken)

    def __exit__(self, *_: object) -> None:
        for module in self.taken:
            release(module)
        self.taken = []


def _forget_other_threads() -> None:
    """Release what other threads ran when this process was forked: only this one is left."""
    thread = get_ident()
    for key in [key for key, owner in _owners.items() if owner != thread]:
        del _owners[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
