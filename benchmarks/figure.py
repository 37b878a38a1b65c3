"""Plot times against the size of a layer and against the density of its input, per library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES
from benchmarks.results_file import Run

COLOURS = ("C0", "C1", "C2", "C4", "C5", "C6", "C9", "C3", "C8")
TITLES = {"forward": "forward, without gradients", "train": "forward and backward"}


def draw(run: Run, folder: Path) -> list[str]:
    """Save the plots of a run; return their names, none without matplotlib or cases to draw."""
    try:
        import matplotlib
    except ImportError:
        return []
    # write a file without opening a window, on machines without a display too
    matplotlib.use("Agg")
    drawn = []
    bare = [case for case in run.cases if case.kind == "lif"]
    if bare:
        shape = f"T={bare[0].T}, B={bare[0].B}"
        figure = _plot(run, bare, lambda case: case.N, "neurons", "copy of the same bytes")
        _save(figure, run, f"One LIF layer, {shape}, cold", folder / "lif.png")
        drawn.append("lif.png")
    sparse = [case for case in run.cases if case.kind == "events"]
    if sparse:
        shape = f"T={sparse[0].T}, B={sparse[0].B}, N={sparse[0].N}"
        percent = lambda case: round(100 * case.density)  # noqa: E731
        figure = _plot(run, sparse, percent, "events in the input, %", "the linear layer alone")
        _save(figure, run, f"Linear and LIF, {shape}, cold", folder / "density.png")
        drawn.append("density.png")
    return drawn


def _plot(
    run: Run, cases: list[Case], abscissa: Callable[[Case], int], label: str, floor: str
) -> Any:
    """Plot cold times in one axes per pass, a line per library."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for ax, way in zip(axes, TITLES, strict=True):
        chosen = [case for case in cases if case.way == way]
        for number, library in enumerate(LIBRARIES):
            times = [(abscissa(c), run.value(c.name, library.name, cold=True)) for c in chosen]
            points = [(x, value * 1e3) for x, value in times if value is not None]
            if not points:
                continue
            ours, bound = library.name == "tracetorch", library.name == "floor"
            ax.plot(
                *zip(*points, strict=True),
                label=floor if bound else library.name,
                color="black" if ours else "0.6" if bound else COLOURS[number % len(COLOURS)],
                linestyle=":" if bound else "-",
                linewidth=2.5 if ours else 1.5,
                marker=None if bound else "o",
                markersize=5,
                zorder=3 if ours else 2,
            )
        ticks = sorted({abscissa(case) for case in chosen})
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xlabel(label)
        ax.set_title(TITLES[way])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def _save(figure: Any, run: Run, title: str, path: Path) -> None:
    from matplotlib import pyplot as plt

    m = run.machine
    figure.suptitle(f"{title}: {m['processor']}, {m['cores']} cores, {m['date']}")
    figure.savefig(path, dpi=130)
    plt.close(figure)
