"""Plot the time of the bare layer against its size, one line per library."""

from __future__ import annotations

from pathlib import Path

from benchmarks.libraries import LIBRARIES
from benchmarks.results_file import Run

COLOURS = ("C0", "C1", "C2", "C4", "C5", "C6", "C9", "C3", "C8")
TITLES = {"forward": "forward, without gradients", "train": "forward and backward"}


def draw(run: Run, path: Path) -> bool:
    """Save the plot of a run; return ``False`` without cases to draw or without matplotlib."""
    bare = [case for case in run.cases if case.kind == "lif"]
    if not bare:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    # write a file without opening a window, on machines without a display too
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for ax, way in zip(axes, TITLES, strict=True):
        cases = [case for case in bare if case.way == way]
        for number, library in enumerate(LIBRARIES):
            points = [(case.N, run.value(case.name, library.name)) for case in cases]
            drawn = [(N, value * 1e3) for N, value in points if value is not None]
            if not drawn:
                continue
            ours, floor = library.name == "tracetorch", library.name == "floor"
            ax.plot(
                *zip(*drawn, strict=True),
                label="copy of the same bytes" if floor else library.name,
                color="black" if ours else "0.6" if floor else COLOURS[number % len(COLOURS)],
                linestyle=":" if floor else "-",
                linewidth=2.5 if ours else 1.5,
                marker=None if floor else "o",
                markersize=5,
                zorder=3 if ours else 2,
            )
        sizes = sorted({case.N for case in cases})
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set_xlabel("neurons")
        ax.set_title(TITLES[way])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    m = run.machine
    shape = f"T={bare[0].T}, B={bare[0].B}"
    figure.suptitle(f"One LIF layer, {shape}: {m['processor']}, {m['cores']} cores, {m['date']}")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
