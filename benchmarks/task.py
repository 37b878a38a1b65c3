"""Interfaces of an adapter module and of the task it prepares for a case."""

from __future__ import annotations

from typing import Protocol

from benchmarks.cases import Case


class Task(Protocol):
    """A case in one library, ready to run any number of times."""

    def run(self) -> None:
        """Do the pass once, from fresh states."""

    def density(self) -> float:
        """Return the share of neurons that spike; of the first spiking layer in a network."""


class Adapter(Protocol):
    """Interface of the modules in ``benchmarks.adapters``."""

    def unsupported_reason(self, case: Case) -> str | None:
        """Return why the library cannot run a case, or ``None``."""

    def prepare(self, case: Case) -> Task:
        """Build the model and the input of a case."""

    def version(self) -> str:
        """Return the installed version."""
