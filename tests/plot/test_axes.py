from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.plot.cases import PLOTS
from tracetorch.plot.axes import add_legend, get_axes, set_integer_ticks


@pytest.mark.parametrize("name", PLOTS)
def test_plots_draw_on_ax_and_return_it(name: str) -> None:
    left, right = Figure(figsize=(8, 3)).subplots(1, 2)
    assert PLOTS[name](ax=right) is right
    assert right.has_data()
    assert not left.has_data()


@pytest.mark.parametrize("name", PLOTS)
def test_new_figures_have_no_overlapping_text(name: str) -> None:
    ax = PLOTS[name]()
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    inside = figure.bbox.padded(1)
    frames = [t.get_window_extent(renderer) for axes in figure.axes for t in texts(axes)]
    assert frames
    for frame in frames:
        assert inside.contains(*frame.min)
        assert inside.contains(*frame.max)
    for number, frame in enumerate(frames):
        for other in frames[number + 1 :]:
            shared = np.minimum(frame.max, other.max) - np.maximum(frame.min, other.min)
            assert (shared < 1.5).any()  # pixels; a text's box is wider than its ink


def test_legend_hides_nothing() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], label="a line")
    add_legend(ax)
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
    assert not legend.get_frame_on()


@pytest.mark.parametrize(("high", "ticks"), [(1, [0, 1]), (6, [*range(7)]), (7, [0, 2, 4, 6])])
def test_ticks_are_few_whole_numbers(high: int, ticks: list[int]) -> None:
    ax = Figure().subplots()
    ax.set(xlim=(0, high), ylim=(0, 1.5))
    set_integer_ticks(ax, "x", "y")
    assert ax.get_xticks().tolist()[: len(ticks)] == ticks
    assert [y for y in ax.get_yticks() if 0 <= y <= 1.5] == [0, 1]


def texts(ax: Axes) -> list[Text]:
    """Title, labels, legend and those tick labels that are within the axes' limits."""
    found = [ax.title, ax.xaxis.label, ax.yaxis.label]
    if (legend := ax.get_legend()) is not None:
        found += legend.get_texts()
    for axis, place in ((ax.xaxis, 0), (ax.yaxis, 1)):
        low, high = sorted(axis.get_view_interval())
        for minor in (False, True):
            labels = axis.get_ticklabels(minor=minor)
            found += [t for t in labels if low <= t.get_position()[place] <= high]
    return [text for text in found if text.get_text()]


@pytest.mark.parametrize("name", [n for n in PLOTS if not n.startswith("render_image")])
def test_axes_are_labelled(name: str) -> None:
    ax = PLOTS[name]()
    assert ax.get_xlabel()
    assert ax.get_ylabel() or any(label.get_text() for label in ax.get_yticklabels())


UNTITLED = ("spike_train", "line_graph", "distributions", "render_image", "measurement", "raster b")


@pytest.mark.parametrize("name", [n for n in PLOTS if not n.startswith(UNTITLED)])
def test_title_is_set_where_there_is_one(name: str) -> None:
    assert PLOTS[name]().get_title() == ""
    assert PLOTS[name](title="of a run").get_title() == "of a run"


def test_matplotlib_is_imported_late_and_pyplot_and_rcparams_are_untouched() -> None:
    code = (
        "import sys\n"
        "import tracetorch as tt\n"
        "tt.plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from tests.plot.cases import PLOTS, uniform\n"
        "for draw in PLOTS.values():\n"
        "    draw()\n"
        "tt.plot.animate_events(uniform(2, 1, 2, 4, 4)).to_jshtml()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_missing_matplotlib_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracetorch.core.optional.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tt\.plot needs matplotlib.*\.\[plot\]"):
        get_axes(None)
