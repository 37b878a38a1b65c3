"""Represent a finding of the diagnosis, and register the functions that look for findings."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Literal, TypeAlias

from tracetorch.diagnosis.evidence import Evidence

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_WIDTH = 96


@dataclass(frozen=True)
class Finding:
    """Finding of a diagnosis: a reason why a network may not learn.

    Args:
        severity: ``"error"``: the network cannot learn; ``"warning"``: it hardly can; ``"note"``:
            worth knowing, and often intended.
        name: kind of the finding, such as ``"dead-neurons"``.
        layer: path of the layer or parameter, empty for the model as a whole.
        value: the measured figure as a number.
        figure: the measured figure in words.
        meaning: consequence for learning.
        advice: remedies to try.

    Example:
        >>> print(Finding("note", "frozen", "0", 1.0, "1 of 4.", "It stays.", "Thaw it."))
        NOTE  frozen, in 0
          figure  1 of 4.
          means   It stays.
          try     Thaw it.
    """

    severity: Severity
    name: str
    layer: str
    value: float
    figure: str
    meaning: str
    advice: str

    def __str__(self) -> str:
        where = f", in {self.layer}" if self.layer else ""
        lines = [f"{self.severity.upper()}  {self.name}{where}"]
        for head, text in (("figure", self.figure), ("means", self.meaning), ("try", self.advice)):
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {head:<8}", subsequent_indent=" " * 10
            )
        return "\n".join(lines)


Finder: TypeAlias = Callable[[Evidence], Iterator[Finding]]
_FINDERS: dict[str, list[Finder]] = {}


def finder(find: Finder) -> Finder:
    """Register a function that looks for findings; those of a module run in their order there."""
    _FINDERS.setdefault(find.__module__, []).append(find)
    return find


def findings(module: ModuleType, evidence: Evidence) -> list[Finding]:
    """Return what the functions of a module find."""
    return [finding for find in _FINDERS[module.__name__] for finding in find(evidence)]


def measured(severity: Severity, name: str, layer: str, value: float) -> partial[Finding]:
    """Begin a finding; what is returned takes the figure in words, the meaning and the advice."""
    return partial(Finding, severity, name, layer, float(value))


def join_first(names: Sequence[str]) -> str:
    """Join the first few of many names for a message."""
    return ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
