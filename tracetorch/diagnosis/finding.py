"""Represent a finding of the diagnosis, and register the functions that look for findings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from tracetorch.diagnosis.evidence import Evidence

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_WIDTH = 96

# Rows of a finding, and behind a slash of a variant: its severities, and the texts as they are
# printed, with fields.
_ROW = re.compile(
    r"^(\S+), (.*)\n  figure  ((?:.|\n )*)\n  means   ((?:.|\n )*)\n  try     ((?:.|\n )*)$", re.M
)
ROWS: dict[str, tuple[list[Any], list[str]]] = {
    row: (severities.split(), [re.sub(r"\n +", " ", text) for text in texts])
    for row, severities, *texts in _ROW.findall(
        (Path(__file__).parent / "findings.txt").read_text()
    )
}


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


def measured(row: str, layer: str, value: float, severity: Any = None, **fields: Any) -> Finding:
    """Return the finding of a row of the texts, whose fields these and ``value`` are."""
    severities, texts = ROWS[row]
    if severity is None:
        (severity,) = severities
    words = (text.format(value=value, percent=100 * value, **fields) for text in texts)
    return Finding(severity, row.partition("/")[0], layer, float(value), *words)


def join_first(names: Sequence[str]) -> str:
    """Join the first few of many names for a message."""
    return ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
