from __future__ import annotations

import itertools
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text

import tracetorch as tt
from tests.plot.cases import PICTURES, PLOTS, baseline, picture, spikes, uniform
from tests.processes import run_python
from tracetorch.plot.axes import get_axes
from tracetorch.plot.recorded import flat_numbers, flatten_neurons, select_sample

# root mean square over pixels from 0 to 255: releases of matplotlib blend edges differently
TOLERANCE = 2.0
UNTITLED = ("spike_train", "line_graph", "distributions", "render_image", "measurement", "raster b")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PLOTS)
def test_plots_draw_on_ax_with_labels_and_new_figures_have_no_overlapping_text(name: str) -> None:
    left, right = Figure(figsize=(8, 3)).subplots(1, 2)
    assert PLOTS[name](ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    ax: Any = PLOTS[name]()
    if not name.startswith("render_image"):
        assert ax.get_xlabel()
        assert ax.get_ylabel() or any(label.get_text() for label in ax.get_yticklabels())
    if not name.startswith(UNTITLED):
        assert ax.get_title() == ""
        assert PLOTS[name](title="of a run").get_title() == "of a run"
    figure = ax.figure
    figure.draw_without_rendering()
    renderer, inside = figure._get_renderer(), figure.bbox.padded(1)
    frames = [t.get_window_extent(renderer) for axes in figure.axes for t in texts(axes)]
    assert frames
    for frame in frames:
        assert inside.contains(*frame.min)
        assert inside.contains(*frame.max)
    for one, other in itertools.combinations(frames, 2):
        shared = np.minimum(one.max, other.max) - np.maximum(one.min, other.min)
        assert (shared < 1.5).any()  # pixels; a text's box is wider than its ink


def texts(ax: Axes) -> list[Text]:
    found = [ax.title, ax.xaxis.label, ax.yaxis.label]
    if (legend := ax.get_legend()) is not None:
        found += legend.get_texts()
    for axis, place in ((ax.xaxis, 0), (ax.yaxis, 1)):
        low, high = sorted(axis.get_view_interval())
        for minor in (False, True):
            labels = axis.get_ticklabels(minor=minor)
            found += [t for t in labels if low <= t.get_position()[place] <= high]
    return [text for text in found if text.get_text()]


LATE = """
import sys
import warnings
warnings.simplefilter('error')
import tracetorch as tt
tt.plot
assert 'matplotlib' not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
from tests.plot.cases import PLOTS, uniform
for draw in PLOTS.values():
    draw()
tt.plot.animate_events(uniform(2, 1, 2, 4, 4)).to_jshtml()
assert 'matplotlib.pyplot' not in sys.modules
assert matplotlib.rcParams.copy() == before
"""


@pytest.mark.slow
def test_matplotlib_is_imported_late_and_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_python("-c", LATE)
    monkeypatch.setattr("tracetorch.core.checks.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tt\.plot needs matplotlib.*\.\[plot\]"):
        get_axes(None)


plot: Any = tt.plot

SPIKES, STATES = spikes(6, 2, 3), uniform(6, 2, 3)


def test_time_is_in_milliseconds_and_rates_in_hertz() -> None:
    by_step, by_ms = (plot.raster(SPIKES, dt=dt) for dt in (None, 0.5))
    steps, times = ([s[0][0] for s in ax.collections[0].get_segments()] for ax in (by_step, by_ms))
    assert np.allclose(times, (np.array(steps) + 0.5) * 0.5)
    assert by_ms.get_xlim() == (0, 3)
    assert (by_step.get_xlabel(), by_ms.get_xlabel()) == ("time step", "time (ms)")
    ax = plot.state_trace(STATES, spikes=torch.ones(6, 2, 3), dt=2.0)
    assert ax.lines[0].get_xdata().tolist() == [1, 3, 5, 7, 9, 11]
    assert [s[0][0] for s in ax.collections[0].get_segments()] == [1, 3, 5, 7, 9, 11]
    assert ax.get_xlim() == (0, 12)
    by_step, by_ms = (plot.rate_map(SPIKES, window=4, dt=dt) for dt in (None, 0.5))
    values = [np.asarray(ax.collections[0].get_array()) for ax in (by_step, by_ms)]
    assert np.allclose(values[1], 2000 * values[0])  # two steps a millisecond
    edges = by_ms.collections[0].get_coordinates()[0, :, 0]
    assert edges.tolist() == [0, 2, 3]
    histogram = plot.rate_histogram(SPIKES, dt=0.5)
    plain, silent = plot.rate_histogram(SPIKES), plot.rate_histogram(torch.zeros(3, 1, 2), dt=0.5)
    assert np.isclose(histogram.get_xlim()[1], 2000 * plain.get_xlim()[1])
    assert histogram.get_xlabel() == "firing rate (Hz)"
    assert np.allclose(*(ax.patches[0].get_data().values for ax in (histogram, plain)))
    assert silent.get_xlim() == (0, 2000)


def test_neurons_are_flattened_and_numbers_taken_from_tensors_arrays_and_lists() -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).double().requires_grad_()
    assert select_sample("raster", "", x, -1).tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]
    assert select_sample("raster", "", x, None).shape == (2, 12)
    assert flatten_neurons("raster", "", x).shape == (2, 3, 4)
    tensor = torch.tensor([[1], [2.5]])
    for argument in ([1, 2.5], (torch.tensor(1), torch.tensor(2.5)), tensor, np.array([1.0, 2.5])):
        assert flat_numbers(argument).tolist() == [1.0, 2.5]
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16):
        result = select_sample("raster", "", torch.tensor([[[1]], [[0]]]).to(dtype), 0)
        assert result.dtype == np.float32
        assert result.tolist() == [[1], [0]]


@pytest.mark.parametrize("name", PICTURES)
def test_plot_matches_its_baseline(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.png"
    picture(PLOTS[name], made)
    difference = compare_images(str(baseline(name)), str(made), TOLERANCE)
    assert difference is None, difference


GALLERY = Path(__file__).parents[2] / "examples" / "gallery.py"


@pytest.mark.slow
def test_gallery_draws_every_plot(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--out", str(tmp_path), "--rounds", "2"])
    runpy.run_path(str(GALLERY), run_name="__main__")
    made = {path.stem for path in tmp_path.iterdir() if path.stat().st_size > 1_000}
    functions = set(tt.plot.__all__) - {"MeasurementManager", "animate_events", "animate_run"}
    others = {"decays", "save_animation", "save_html", "save_playground", "show_html"}
    assert functions - others <= made
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("events.gif", "events.html", "neuron.html", "run.gif", "run.html")
    }
    assert f"{len(list(tmp_path.iterdir()))} pictures and pages" in capsys.readouterr().out
