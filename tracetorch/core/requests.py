"""Request a setting by name: from now on, or inside a ``with`` block in its own thread alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar
from weakref import WeakSet

import torch

from tracetorch.core.checks import suggestion

_MOST_REQUESTS = 64  # more than there are threads between a call and the ``with`` it belongs to


class _InThread(threading.local):
    """The names of the ``with`` blocks that a thread is in, the innermost last.

    Not a ``ContextVar``: ``torch.compile`` can neither trace one nor guard on it.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()


class Requests:
    """Hold what is requested of a setting: one of its ``names``, the first one by default."""

    def __init__(
        self, kind: str, names: tuple[str, ...], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.names, self.aliases = names, dict(aliases or {})
        self.default = names[0]  # of all threads
        self.last: list[Request] = []  # any of them may turn out to belong to a ``with``
        self.in_thread = _InThread()
        self.renew_lock()
        _all.add(self)

    def renew_lock(self) -> None:
        """Make a new lock, for no thread is left in a forked child that would release the old."""
        self.lock = threading.Lock()

    def check(self, name: str) -> str:
        """Return the name that a name or an alias stands for; raise ``ValueError`` for others."""
        if name in self.aliases:
            return self.aliases[name]
        if name not in self.names:
            hint = suggestion(name, (*self.names, *self.aliases))
            raise ValueError(
                f"no {self.kind} is called {name!r}.{hint} There are {', '.join(self.names)}."
            )
        return name

    @property
    def name(self) -> str:
        """The name that is requested in this thread."""
        names = self.in_thread.names
        return names[-1] if names else self.default


class Request:
    """Base class of a request: a function that sets the default of all threads, or a ``with``."""

    requests: ClassVar[Requests]

    def __init__(self, name: str) -> None:
        requests = self.requests
        self.name = name = requests.check(name)
        if torch.compiler.is_compiling():  # which cannot trace a lock
            self.previous, requests.default = requests.default, name
            return
        with requests.lock:
            self.previous, requests.default = requests.default, name
            requests.last.append(self)
            del requests.last[:-_MOST_REQUESTS]

    def __enter__(self) -> None:
        requests = self.requests
        if torch.compiler.is_compiling():
            requests.default = self.previous
        else:
            with requests.lock:
                self._withdraw(requests)
        requests.in_thread.names += (self.name,)

    def _withdraw(self, requests: Requests) -> None:
        """Undo what ``__init__`` did to the default, whatever other threads have done since."""
        if self not in requests.last:  # entered a second time
            return
        place = requests.last.index(self)
        del requests.last[place]
        if place < len(requests.last):
            requests.last[place].previous = self.previous
        else:
            requests.default = self.previous

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        in_thread = self.requests.in_thread
        in_thread.names = in_thread.names[:-1]


_all: WeakSet[Requests] = WeakSet()


def _renew_locks() -> None:
    for requests in _all:
        requests.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
