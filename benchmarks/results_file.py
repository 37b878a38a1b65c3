"""Results of a benchmark run, and their JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from benchmarks.cases import Case, all_cases


@dataclass
class Run:
    """Machine, settings and results of a run of the benchmarks.

    ``results`` maps each case to the answer of each library: ``seconds`` (hot) and ``cold``, or
    ``bytes``, and ``density``; or ``failed`` with the reason.
    """

    machine: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def value(self, case: str, library: str, cold: bool = False) -> float | None:
        """Return the seconds or bytes of a case; ``None`` where it was not measured."""
        answer = self.results.get(case, {}).get(library, {})
        if "failed" in answer:
            return None
        found: float | None = answer.get("cold" if cold else "seconds", answer.get("bytes"))
        return found

    def ratio(
        self, case: str, library: str, to: str = "tracetorch", cold: bool = False
    ) -> float | None:
        """Return how many times as much ``library`` takes as ``to``."""
        its, ours = self.value(case, library, cold), self.value(case, to, cold)
        return its / ours if its and ours else None

    def with_rows_of(self, later: Run) -> Run:
        """Replace cases by those of a later run, and add others; ``settings["again"]`` lists them.

        Libraries that only the later one has measured are added; their other cells stay empty.

        Raises:
            ValueError: machine, day, number of rounds or versions of the two runs differ.
        """
        versions = {**self.versions, **later.versions}
        for name, mine, its in (
            ("machine or day", self.machine, later.machine),
            ("rounds", self.settings["rounds"], later.settings["rounds"]),
            ("versions", {**versions, **self.versions}, versions),
        ):
            if mine != its:
                raise ValueError(f"two runs of different {name} have no table: {mine}, {its}.")
        order = {case.name: number for number, case in enumerate(all_cases())}
        added = [case for case in later.cases if case not in self.cases]
        cases = sorted([*self.cases, *added], key=lambda case: order.get(case.name, len(order)))
        replaced = {case.name: later.results[case.name] for case in later.cases}
        before = self.settings.get("again", [])
        again = [case.name for case in cases if case.name in (*replaced, *before)]
        settings = {**self.settings, "again": again}
        results = {**self.results, **replaced}
        return replace(self, cases=cases, settings=settings, versions=versions, results=results)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Read the dict that :meth:`as_json` returned."""
        held = {name: data[name] for name in (f.name for f in fields(cls))}
        cases = [Case(**{**case, "only": tuple(case["only"])}) for case in data["cases"]]
        return cls(**{**held, "cases": cases})

    def as_json(self) -> dict[str, Any]:
        """Return the run as a dict for JSON, with the ratios to traceTorch."""
        data = asdict(self)
        for key, cold in (("ratios", False), ("cold_ratios", True)):
            data[key] = {
                case: {
                    name: self.ratio(case, name, cold=cold)
                    for name in found
                    if name != "tracetorch"
                }
                for case, found in self.results.items()
            }
        return data
