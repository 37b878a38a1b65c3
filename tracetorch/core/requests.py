"""Request a setting by name: from now on, or inside a ``with`` block in its own thread alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import ClassVar

from tracetorch.core.checks import suggestion

_MOST_REQUESTS = 64  # more than there are threads between a call and the ``with`` it belongs to


class _InThread(threading.local):
    """Names of a thread. Not a ``ContextVar``, which ``torch.compile`` cannot trace."""

    names: tuple[str, ...] = ()  # of the ``with`` blocks, the innermost last


class Requests:
    """Hold what is requested of a setting: one of its ``names``, the first one by default."""

    def __init__(
        self, kind: str, names: tuple[str, ...], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.names, self.aliases = names, dict(aliases or {})
        self.default = names[0]  # of all threads
        self.calls: list[Request] = []  # any of them may turn out to belong to a ``with``
        self.in_thread = _InThread()

    def set_default(self) -> None:
        """Make the name of the last call the default; again where another thread came between."""
        while True:
            last = self.calls[-1:]
            name = last[0].name if last else self.names[0]
            if self.default == name:
                return
            self.default = name

    def check(self, name: str) -> str:
        """Return the name that a name or an alias stands for; raise ``ValueError`` for others."""
        if name not in (*self.names, *self.aliases):
            hint = suggestion(name, (*self.names, *self.aliases))
            raise ValueError(
                f"no {self.kind} is called {name!r}.{hint} There are {', '.join(self.names)}."
            )
        return self.aliases.get(name, name)


class Request:
    """Base class of a request: a function that sets the default of all threads, or a ``with``."""

    requests: ClassVar[Requests]

    def __init__(self, name: str) -> None:
        requests = self.requests
        self.name = requests.check(name)
        # each step on the list is one that no other thread interrupts
        requests.calls.append(self)
        del requests.calls[:-_MOST_REQUESTS]
        requests.set_default()

    def __enter__(self) -> None:
        if self in self.requests.calls:  # it is not, entered a second time
            self.requests.calls.remove(self)
            self.requests.set_default()
        self.requests.in_thread.names += (self.name,)

    def __exit__(self, *error: object) -> None:
        self.requests.in_thread.names = self.requests.in_thread.names[:-1]
