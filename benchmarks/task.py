"""``Task``: one case, ready to be run again and again by one library."""

from __future__ import annotations

from typing import Protocol

from benchmarks.cases import Case


class Task(Protocol):
    """What every adapter's ``prepare(case)`` gives."""

    def run(self) -> None:
        """Do the pass once, from fresh states."""

    def density(self) -> float:
        """The share of neurons that spike; of the first spiking layer in a network."""


class Adapter(Protocol):
    """What every module in ``benchmarks.adapters`` is."""

    def refuses(self, case: Case) -> str | None:
        """Why it has no such case, or ``None``."""

    def prepare(self, case: Case) -> Task:
        """Build model and input."""

    def version(self) -> str:
        """What is installed."""
