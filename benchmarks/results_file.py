"""What a run found, as it is written to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from benchmarks.cases import Case


@dataclass
class Run:
    """One run of the benchmarks.

    ``results`` is, for each case by name, what each library said: ``seconds`` or ``bytes``, and
    ``density``; or ``failed``.
    """

    machine: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def value(self, case: str, library: str) -> float | None:
        """Seconds, or bytes, or ``None`` where there are none."""
        told = self.results.get(case, {}).get(library, {})
        if "failed" in told:
            return None
        found: float | None = told.get("seconds", told.get("bytes"))
        return found

    def ratio(self, case: str, library: str, to: str = "tracetorch") -> float | None:
        """How many times as much ``library`` takes as ``to``."""
        its, ours = self.value(case, library), self.value(case, to)
        return its / ours if its and ours else None

    def with_rows_of(self, later: Run) -> Run:
        """This run with the cases of a later one in their places, and a word that they are.

        Raises:
            ValueError: the two are not of one machine, one day, one number of rounds, or versions.
        """
        for what, mine, its in (
            ("machine or day", self.machine, later.machine),
            ("rounds", self.settings["rounds"], later.settings["rounds"]),
            ("versions", self.versions, later.versions),
        ):
            if mine != its:
                raise ValueError(f"two runs of different {what} have no table: {mine}, {its}.")
        again = [case.name for case in self.cases if case in later.cases]
        settings = {**self.settings, "again": again}
        replaced = {name: later.results[name] for name in again}
        return replace(self, settings=settings, results={**self.results, **replaced})

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> Run:
        """What :meth:`as_json` wrote."""
        held = {name: told[name] for name in (f.name for f in fields(cls))}
        cases = [Case(**{**case, "only": tuple(case["only"])}) for case in told["cases"]]
        return cls(**{**held, "cases": cases})

    def as_json(self) -> dict[str, Any]:
        """All of it, with the ratios."""
        told = asdict(self)
        told["ratios"] = {
            case: {name: self.ratio(case, name) for name in found if name != "tracetorch"}
            for case, found in self.results.items()
        }
        return told
