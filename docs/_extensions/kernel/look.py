"""Look at the pictures that a cell has drawn, as a reader would; a kernel runs ``watch`` first.

A legend must cover no line, and what is counted, such as steps and neurons, has no halves on its
axis. What is wrong is written to a file, of which ``docs/_extensions/executed.py`` makes warnings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COUNTED = {
    *("neuron", "neurons", "step", "steps", "frame", "frames", "layer", "layers"),
    *("epoch", "epochs", "trial", "trials", "channel", "band", "row", "batch", "update"),
}


def faults(figure: Any) -> Iterator[str]:
    """Yield what is wrong in a figure of matplotlib, in words."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for legend in filter(None, legends):
        box = legend.get_window_extent().padded(-2)  # pixels
        for line in (line for axes in figure.axes for line in axes.lines):
            path = line.get_path().transformed(line.get_transform())
            if line.get_visible() and _meets(line, path, box):
                yield f"a legend covers the line {line.get_label()!r}"
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            words = axis.get_label_text().split()
            counted = words and {words[0], words[-1]} & COUNTED and not {"per", "a"} & {*words}
            if not counted or axis.get_scale() != "linear":
                continue
            low, high = sorted(axis.get_view_interval())
            places = [place for place in axis.get_majorticklocs() if low <= place <= high]
            labelled = any(label.get_text() for label in axis.get_ticklabels())
            if labelled and any(abs(place - round(place)) > 1e-9 for place in places):
                yield f"the axis of {' '.join(words)!r} has ticks at {places}"


def _meets(line: Any, path: Any, box: Any) -> bool:
    """Whether a path in pixels passes through a box; points without a line only lie in it."""
    if line.get_linestyle() in ("None", " ", ""):
        return bool(box.count_contains(path.vertices))
    return bool(path.intersects_bbox(box, filled=False))


def watch(shell: Any) -> None:
    """Look at the open figures after each cell, before they are shown and closed."""
    notes = Path(f"{os.environ['DOCS_OPENED']}.pictures")

    def look() -> None:
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else ():
            found = list(faults(pyplot.figure(number)))
            with notes.open("a", encoding="utf-8") as file:
                file.writelines(f"{each}\n" for each in found)

    shell.events.register("post_execute", look)
