"""Refuse wrong arguments before anything is drawn or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import tracetorch as tt
from tests.plot.cases import outputs, uniform
from tracetorch import snn
from tracetorch.plot.recorded import check_index, flat_numbers

plot: Any = tt.plot

MEM, SEEN = torch.zeros(5, 2, 4), torch.ones(5, 4, 2)
NAN = torch.full((6, 3), torch.nan)
FRAMES = uniform(2, 1, 1, 4, 4)

# the function, its arguments, and what the message says
VALUES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("raster", ({},), {}, "raster: the recording is empty. Name something in record="),
    ("raster", (torch.tensor(1.0),), {}, r"raster must have time first.*float32 \[\]"),
    ("raster", (torch.ones(2, 1, dtype=torch.complex64),), {}, "hold real numbers, got torch.com"),
    ("raster", ({"a": torch.ones(2, 1), "b": torch.ones(3, 1)},), {},
     r"same number of steps, got \{'a': 2, 'b': 3\}"),
    ("raster", (torch.ones(2, 3, 1),), {"sample": 3}, "sample must lie in 0 to 2, got 3"),
    ("raster", (outputs(),), {"limit": 0}, "raster: limit must be at least 1, got 0"),
    ("raster", (MEM,), {"dt": 0.0}, "raster: dt must be positive"),
    ("state_trace", (MEM,), {"neurons": 4}, "neurons must lie in 0 to 3, got 4"),
    ("state_trace", (MEM,), {"spikes": torch.zeros(5, 2, 3)}, r"got \[5, 4\] and \[5, 3\]"),
    ("state_trace", (MEM,), {"thresholds": torch.ones(3)}, r"shape \[3\].* of the states \[4\]"),
    ("state_trace", ({"a": MEM, "b": torch.zeros(5, 2, 3)},), {}, "Pass what is of a single layer"),
    ("rate_histogram", (outputs(),), {"bins": 0}, "rate_histogram: bins must be at least 1"),
    ("rate_map", (outputs(),), {"window": 0}, "rate_map: window must be at least 1, got 0"),
    ("rate_histogram", (NAN[None],), {}, "holds NaN, which is neither a spike nor silence"),
    ("rate_map", (torch.ones(4),), {}, r"must be \[T, B, \.\.\.\], got shape \[4\].*\[:, None\]"),
    ("halflives", (nn.Linear(2, 2),), {}, "before has no decays"),
    ("halflives", ({"a": torch.ones(2)},), {}, "strictly between 0 and 1"),
    ("halflives", (snn.LIF(2), snn.SLIF(2)), {}, r"before has \['beta'\], after has \['alpha'"),
    ("distributions", ([MEM], "t"), {"bandwidths": [0.1, 0.1]}, "argument 2 is longer"),
    ("distributions", ([uniform(2)], "t"), {"bandwidths": [0.0]}, "bandwidth must be positive"),
    ("distributions", ([torch.tensor([1.0, math.nan])], "t"), {}, "layer 0 must hold finite value"),
    ("distributions", ({"empty": torch.ones(0)}, "t"), {}, "empty must hold finite values"),
    ("distributions", ([MEM], "t"), {"n_grid": 0}, "n_grid must be at least 1"),
    ("learning_curves", ({"a": []},), {}, "'a' has no values"),
    ("learning_curves", ({"a": [1.0]},), {"best": "max"}, "best must be 'highest', 'lowest' or"),
    ("spike_train", ([torch.ones(1), torch.ones(2)],), {}, "must have the same shape"),
    ("spike_train", ([torch.ones(2)],), {"spacing": 0}, "spacing must be positive and finite, got"),
    ("render_image", (uniform(2, 4, 5),), {}, r"got \[2, 4, 5\]. Pick one image of a batch"),
    ("render_image", (uniform(4, 5),), {"vmin": 2, "vmax": 1}, "vmax must not be less than vmin"),
    ("surrogate_curves", (), {"reach": 0}, "reach must be positive and finite, got 0"),
    ("animate_events", (uniform(2, 1, 3, 4, 4),), {}, r"1 or 2 channels, got \[2, 1, 3, 4, 4\]"),
    ("animate_events", (uniform(2, 2, 4, 4),), {}, r"\[T, B, C, H, W\].*\[2, 2, 4, 4\].*sample=No"),
    ("animate_events", (-FRAMES,), {}, r"must not be negative. Try \.abs\(\)"),
    ("animate_events", (FRAMES,), {"fps": 0}, "fps must be positive and finite, got 0"),
    ("animate_run", (MEM,), {"stride": 0}, "animate_run: stride must be at least 1"),
    ("animate_run", (MEM, uniform(6, 1, 2)), {}, "spikes have 5 steps, states 6"),
    ("save_animation", (FRAMES, "film.mp4"), {}, r"writes \.gif or \.html, got '.*film\.mp4'"),
    ("save_html", ({}, "run.html"), {}, "save_html: the recording is empty"),
    ("save_html", (torch.ones(3), "run.html"), {}, r"must be \[T, B, \.\.\.\], got shape \[3\]"),
    ("save_html", ({"a": torch.ones(3, 1, 1), "b": torch.ones(3, 2, 1)}, "run.html"), {},
     r"same batch, got \{'a': 1, 'b': 2\}"),
    ("show_html", (Path(__file__),), {}, "is no HTML page"),
    ("show_html", (Path(__file__),), {"height": 0}, "height must be at least 1"),
    ("MeasurementManager", ("m", []), {}, "decay takes numbers of at least 0 and less than 1"),
]  # fmt: skip
TYPES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("raster", ([1, 2],), {}, r"raster takes a tensor \[T, B, \.\.\.\] or a dict.*got list"),
    ("raster", ({"a": [1.0]},), {}, "a dict from names to tensors.*got dict"),
    ("raster", (MEM,), {"sample": 0.5}, r"sample must be an integer, got 0\.5"),
    ("raster", (MEM,), {"dt": "1"}, "dt must be a number of milliseconds"),
    ("raster", (MEM,), {"ax": Figure().subplots(1, 2)}, r"ax must be matplotlib axes.*axes\[0\]"),
    ("state_trace", (MEM,), {"neurons": [0.5]}, r"neurons must be an integer, got 0\.5"),
    ("decays", ({},), {}, r"expected an nn\.Module, got dict"),
    ("learning_curves", ({"a": 3.0},), {}, "not iterable"),
    ("surrogate_curves", (), {"reach": "1"}, "reach must be a number, got '1'"),
    ("save_html", (MEM, "a.html"), {"title": 3}, "save_html: title must be a string, got int"),
    ("save_html", (MEM, "a.html"), {"batched": 1}, "batched must be True or False, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "name", "arguments", "options", "match"),
    [(error, *row) for error, rows in ((ValueError, VALUES), (TypeError, TYPES)) for row in rows],
)
def test_wrong_arguments_are_refused(
    error, name, arguments, options, match, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        getattr(plot, name)(*arguments, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["x", None, torch.ones(2)])
def test_append_rejects_other_types_and_keeps_its_values(value: Any) -> None:
    measured = plot.MeasurementManager("m")
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"float|convert|scalar"):
        measured.append(value)
    assert measured.measurement == []


def test_a_missing_page_is_named_and_indices_and_numbers_are_checked() -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.html"):
        plot.show_html("missing.html")
    assert [check_index("n", place, 3) for place in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for place in (3, -4):
        with pytest.raises(ValueError, match=f"n must lie in 0 to 2, got {place}"):
            check_index("n", place, 3)
    for wrong in ("ab", [torch.ones(2)]):
        with pytest.raises((ValueError, RuntimeError), match="convert"):
            flat_numbers(wrong)
