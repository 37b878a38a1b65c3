"""Write the results of a run as a Markdown page."""

from __future__ import annotations

import math

from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES
from benchmarks.results_file import Run

UNCHILLED = ("accuracy", "growth")


def table(run: Run) -> str:
    """Return the run as a page of Markdown."""
    names = [library.name for library in LIBRARIES if library.name in run.versions]
    m = run.machine
    lines = [
        "# Benchmarks",
        "",
        f"{m['device'] + '; ' if 'device' in m else ''}"
        f"{m['processor']}, {m['cores']} cores, {m['memory']}, {m['system']}, "
        f"Python {m['python']}; {m['date']}. Medians of {run.settings['rounds']} rounds in which "
        "the libraries take turns, each in a process of its own; 2 threads, 1 in streaming. "
        "In brackets: how many times as much as traceTorch. *forward* is without gradients, "
        "*train* is forward and backward.",
        "",
        "## Cold",
        "",
        "Before each run, a product of two 1024 x 1024 matrices, not timed: caches and threads "
        "are as another layer leaves them, which is how a training step meets them.",
        "",
        *_rows(
            run,
            names,
            [case for case in run.cases if not (case.peak or case.kind in UNCHILLED)],
            cold=True,
        ),
        "",
        "## Hot",
        "",
        "A loop of nothing else.",
        "",
        *_rows(run, names, run.cases, cold=False),
        "",
        *_growth(run),
        *_agreement(run),
        "| library | version | like for like |",
        "|---|---|---|",
    ]
    for library in LIBRARIES:
        if library.name in run.versions:
            lines.append(f"| {library.name} | {run.versions[library.name]} | {library.differs} |")
    if run.settings.get("again"):
        named = "; ".join(run.settings["again"])
        lines.append(f"\nMeasured again in a run of their own, after the others: {named}.")
    lines += [f"\n{name} is left out: {reason}." for name, reason in run.absent.items()]
    if run.settings.get("left"):
        lines.append(f"\nNot measured, for the time was up: {'; '.join(run.settings['left'])}.")
    lines += [
        "",
        "The share of spikes is that of the first layer of neurons. The conv network of the peers "
        "ends with its linear layer, ours with a readout layer too. *digits to 90 %* is the time "
        "of training from scratch, on 4,000 digits of 5,000, until that many of the others are "
        "right. One step is given in microseconds. Peak memory is of forward and backward, above "
        "the input and the incoming gradient, in a fresh process; the least is the output and the "
        "gradient of the input. The floor of a network is its products alone, dense; of a layer, "
        "a copy of the input into memory that is there, twice for *train*.",
        "",
    ]
    return "\n".join(lines)


def _rows(run: Run, names: list[str], cases: list[Case], cold: bool) -> list[str]:
    header = ["| case | spikes | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    return header + [_row(run, case, names, cold) for case in cases]


def _row(run: Run, case: Case, names: list[str], cold: bool) -> str:
    found = run.results.get(case.name, {})
    densities = [row["density"] for row in found.values() if row.get("density") is not None]
    spikes = ""
    if densities:
        low, high = f"{min(densities):.2f}", f"{max(densities):.2f}"
        spikes = low if low == high else f"{low} to {high}"
    cells = []
    for name in names:
        value = run.value(case.name, name, cold)
        ratio = run.ratio(case.name, name, cold=cold)
        if value is None:
            cells.append("failed" if "failed" in found.get(name, {}) else "")
        elif name == "tracetorch" or ratio is None:
            cells.append(f"**{amount(case, value)}**")
        else:
            cells.append(f"{amount(case, value)} ({three_digits(ratio)}x)")
    return f"| {case.name} | {spikes} | " + " | ".join(cells) + " |"


def _agreement(run: Run) -> list[str]:
    """List how each case on a device agrees with the same on the CPU, where it was compared."""
    rows = []
    for case in run.cases:
        found = run.results.get(case.name, {}).get("tracetorch", {}).get("agreement")
        if found:
            gradient = f"{found['gradient']:.1e}" if "gradient" in found else ""
            rows.append(f"| {case.name} | {found['equal']:.4%} | {gradient} |")
    if not rows:
        return []
    head = ["| as on the CPU | equal spikes | largest difference of a gradient |", "|---|---|---|"]
    text = (
        "Ours on this device beside ours on the CPU, with the same weights and inputs. Of a layer "
        "alone all spikes are to be equal, and gradients to 1e-5 of the largest; sums of products "
        "have another order on another device, so that behind them a spike may move."
    )
    return [text, "", *head, *rows, ""]


def _growth(run: Run) -> list[str]:
    """Tell how the time of a layer grows with T, B and N: the slope in a log-log plot."""
    lines: list[str] = []
    for way in ("forward", "train"):
        grown = [case for case in run.cases if case.kind == "growth" and case.way == way]
        for letter, cases in (
            ("T", [case for case in grown if case.B == 32]),
            ("B", [case for case in grown if case.T == 100]),
            ("N", [case for case in run.cases if case.kind == "lif" and case.way == way]),
        ):
            slopes = []
            cases.sort(key=lambda case: case.elements)
            # a smoke test has the same small shape for all
            if len({case.elements for case in cases}) < 2:
                continue
            for name in run.versions:
                found = [run.value(case.name, name) for case in cases]
                if found[0] and found[-1]:
                    sizes = cases[-1].elements / cases[0].elements
                    slope = math.log(found[-1] / found[0]) / math.log(sizes)
                    slopes.append(f"{name} {slope:.2f}")
            if slopes:
                low, high = getattr(cases[0], letter), getattr(cases[-1], letter)
                lines.append(
                    f"The time of one LIF layer, {way}, hot, from {letter}={low:,} to "
                    f"{letter}={high:,} grows as {letter} to the power of: {', '.join(slopes)}."
                )
                lines.append("")
    return lines


def amount(case: Case, value: float) -> str:
    """Format a time or a size with its unit."""
    if case.peak:
        return f"{value / 2**20:.0f} MiB, {value / (4 * case.elements):.1f} inputs"
    if case.streams:
        return f"{three_digits(value * 1e6)} µs"
    return f"{three_digits(value * 1e3)} ms"


def three_digits(value: float) -> str:
    """Format three significant digits, or all digits before the point."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 3)}f}"
