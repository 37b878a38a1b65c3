"""Write the results of a run as a Markdown page."""

from __future__ import annotations

import math

from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES
from benchmarks.results_file import Run


def table(run: Run) -> str:
    """Return the run as a page of Markdown."""
    names = [library.name for library in LIBRARIES if library.name in run.versions]
    m = run.machine
    lines = [
        "# Benchmarks",
        "",
        f"{m['processor']}, {m['cores']} cores, {m['memory']}, {m['system']}, "
        f"Python {m['python']}; {m['date']}. Medians of {run.settings['rounds']} rounds in which "
        "the libraries take turns, each in a process of its own; 2 threads, 1 in streaming. "
        "In brackets: how many times as much as traceTorch. *forward* is without gradients, "
        "*train* is forward and backward.",
        "",
        "| case | spikes | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    lines += [_row(run, case, names) for case in run.cases]
    lines += ["", *_growth(run), "| library | version | like for like |", "|---|---|---|"]
    for library in LIBRARIES:
        if library.name in run.versions:
            lines.append(f"| {library.name} | {run.versions[library.name]} | {library.differs} |")
    if run.settings.get("again"):
        named = "; ".join(run.settings["again"])
        lines.append(f"\nMeasured again in a run of their own, after the others: {named}.")
    lines += [f"\n{name} is left out: {reason}." for name, reason in run.absent.items()]
    lines += [
        "",
        "The conv network of the peers ends with its linear layer, ours with a readout layer too. "
        "One step is given in microseconds. Peak memory is of forward and backward, above the "
        "input and the incoming gradient, in a fresh process; the least is the output and the "
        "gradient of the input. The floor is a copy of the input into memory that is there, twice "
        "for *train*; where a linear layer stands before the neurons, that layer by itself.",
        "",
    ]
    return "\n".join(lines)


def _row(run: Run, case: Case, names: list[str]) -> str:
    found = run.results.get(case.name, {})
    densities = [row["density"] for row in found.values() if row.get("density") is not None]
    spikes = ""
    if densities:
        low, high = f"{min(densities):.2f}", f"{max(densities):.2f}"
        spikes = low if low == high else f"{low} to {high}"
    cells = []
    for name in names:
        value, ratio = run.value(case.name, name), run.ratio(case.name, name)
        if value is None:
            cells.append("failed" if "failed" in found.get(name, {}) else "")
        elif name == "tracetorch" or ratio is None:
            cells.append(f"**{amount(case, value)}**")
        else:
            cells.append(f"{amount(case, value)} ({three_digits(ratio)}x)")
    return f"| {case.name} | {spikes} | " + " | ".join(cells) + " |"


def _growth(run: Run) -> list[str]:
    """Compare the time per step of longer sequences with the shortest."""
    lines: list[str] = []
    for way in ("forward", "train"):
        cases = [case for case in run.cases if case.kind == "growth" and case.way == way]
        for case in cases[1:]:
            factors = []
            for name in run.versions:
                first, last = run.value(cases[0].name, name), run.value(case.name, name)
                if first and last:
                    factors.append(f"{name} {three_digits(last / case.T / (first / cases[0].T))}x")
            shown = ", ".join(factors)
            lines.append(f"Time per step at T={case.T:,} against T={cases[0].T}, {way}: {shown}.")
            lines.append("")
    return lines


def amount(case: Case, value: float) -> str:
    """Format a time or a size with its unit."""
    if case.kind == "memory":
        return f"{value / 2**20:.0f} MiB, {value / (4 * case.elements):.1f} inputs"
    if case.kind == "stream":
        return f"{three_digits(value * 1e6)} µs"
    return f"{three_digits(value * 1e3)} ms"


def three_digits(value: float) -> str:
    """Format three significant digits, or all digits before the point."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 3)}f}"
