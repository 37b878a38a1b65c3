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
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.plot.recorded import check_index, flat_numbers

plot: Any = tt.plot
ONE, MEM, SEEN = torch.ones(2, 1), torch.zeros(5, 2, 4), torch.ones(5, 4, 2)
ROW, STEPS_3, SOME = SEEN[:, 0], torch.zeros(5, 2, 3), outputs()
NAN, FRAMES = torch.full((6, 3), torch.nan), uniform(2, 1, 1, 4, 4)
NO_BATCH = r"ValueError: shape \[5, 2\].*neurons.*\[T, N\].*\[\.\.\., None\]"
NAMES = {"Figure": Figure, "math": math, "nn": nn, "snn": snn, "Path": Path, "uniform": uniform}


@refusals(
    r"""
    raster({}) -> ValueError: raster: the recording is empty. Name something in record=
    raster(torch.tensor(1.0)) -> ValueError: raster must have time first.*float32 \[\]
    raster(ONE + 1j) -> ValueError: hold real numbers, got torch.com
    raster({"a": ONE, "b": torch.ones(3, 1)})
        -> ValueError: same number of steps, got \{'a': 2, 'b': 3\}
    raster(torch.ones(2, 3, 1), sample=3) -> ValueError: sample must lie in 0 to 2, got 3
    raster(SOME, limit=0) -> ValueError: raster: limit must be at least 1, got 0
    raster(MEM, dt=0.0) -> ValueError: raster: dt must be positive
    raster([1, 2]) -> TypeError: raster takes a tensor \[T, B, \.\.\.\] or a dict.*got list
    raster({"a": [1.0]}) -> TypeError: a dict from names to tensors.*got dict
    raster(MEM, sample=0.5) -> TypeError: sample must be an integer, got 0\.5
    raster(MEM, dt="1") -> TypeError: dt must be a number of milliseconds
    raster(MEM, ax=Figure().subplots(1, 2)) -> TypeError: ax must be matplotlib axes.*axes\[0\]
    state_trace(MEM, neurons=4) -> ValueError: neurons must lie in 0 to 3, got 4
    state_trace(MEM, spikes=STEPS_3) -> ValueError: got \[5, 4\] and \[5, 3\]
    state_trace(MEM, thresholds=torch.ones(3)) -> ValueError: shape \[3\].* of the states \[4\]
    state_trace({"a": MEM, "b": STEPS_3}) -> ValueError: Pass what is of a single layer
    state_trace(MEM, neurons=[0.5]) -> TypeError: neurons must be an integer, got 0\.5
    rate_histogram(SOME, bins=0) -> ValueError: rate_histogram: bins must be at least 1
    rate_map(SOME, window=0) -> ValueError: rate_map: window must be at least 1, got 0
    rate_histogram(NAN[None]) -> ValueError: holds NaN, which is neither a spike nor silence
    rate_map(torch.ones(4)) -> ValueError: must be \[T, B, \.\.\.\], got shape \[4\].*\[:, None\]
    halflives(nn.Linear(2, 2)) -> ValueError: before has no decays
    halflives({"a": torch.ones(2)}) -> ValueError: strictly between 0 and 1
    halflives(snn.LIF(2), snn.SLIF(2))
        -> ValueError: before has \['beta'\], after has \['alpha'
    decays({}) -> TypeError: expected an nn\.Module, got dict
    distributions([MEM], "t", bandwidths=[0.1, 0.1]) -> ValueError: argument 2 is longer
    distributions([uniform(2)], "t", bandwidths=[0.0]) -> ValueError: bandwidth must be positive
    distributions([torch.tensor([1.0, math.nan])], "t")
        -> ValueError: layer 0 must hold finite value
    distributions({"empty": torch.ones(0)}, "t") -> ValueError: empty must hold finite values
    distributions([MEM], "t", n_grid=0) -> ValueError: n_grid must be at least 1
    learning_curves({"a": []}) -> ValueError: 'a' has no values
    learning_curves({"a": [1.0]}, best="max") -> ValueError: best must be 'highest', 'lowest' or
    learning_curves({"a": 3.0}) -> TypeError: not iterable
    spike_train([torch.ones(1), torch.ones(2)]) -> ValueError: must have the same shape
    spike_train([torch.ones(2)], spacing=0)
        -> ValueError: spacing must be positive and finite, got
    render_image(uniform(2, 4, 5)) -> ValueError: got \[2, 4, 5\]. Pick one image of a batch
    render_image(uniform(4, 5), vmin=2, vmax=1) -> ValueError: vmax must not be less than vmin
    surrogate_curves(reach=0) -> ValueError: reach must be positive and finite, got 0
    surrogate_curves(reach="1") -> TypeError: reach must be a number, got '1'
    animate_events(uniform(2, 1, 3, 4, 4))
        -> ValueError: 1 or 2 channels, got \[2, 1, 3, 4, 4\]
    animate_events(uniform(2, 2, 4, 4))
        -> ValueError: \[T, B, C, H, W\].*\[2, 2, 4, 4\].*sample=No
    animate_events(-FRAMES) -> ValueError: must not be negative. Try \.abs\(\)
    animate_events(FRAMES, fps=0) -> ValueError: fps must be positive and finite, got 0
    animate_run(MEM, stride=0) -> ValueError: animate_run: stride must be at least 1
    animate_run(MEM, uniform(6, 1, 2)) -> ValueError: spikes have 5 steps, states 6
    save_animation(FRAMES, "film.mp4")
        -> ValueError: writes \.gif or \.html, got '.*film\.mp4'
    save_html({}, "run.html") -> ValueError: save_html: the recording is empty
    save_html(torch.ones(3), "run.html")
        -> ValueError: must be \[T, B, \.\.\.\], got shape \[3\]
    save_html({"a": torch.ones(3, 1, 1), "b": torch.ones(3, 2, 1)}, "run.html")
        -> ValueError: same batch, got \{'a': 1, 'b': 2\}
    save_html(MEM, "a.html", title=3) -> TypeError: save_html: title must be a string, got int
    save_html(MEM, "a.html", batched=1) -> TypeError: batched must be True or False, got 1
    show_html(Path(__file__)) -> ValueError: is no HTML page
    show_html(Path(__file__), height=0) -> ValueError: height must be at least 1
    show_html("missing.html") -> FileNotFoundError: missing\.html
    MeasurementManager("m", []) -> ValueError: decay takes numbers of at least 0 and less than 1
    raster(ROW) -> NO_BATCH
    raster({"1.output": ROW}) -> NO_BATCH
    state_trace(ROW) -> NO_BATCH
    rate_histogram(ROW) -> NO_BATCH
    rate_map({"1.output": ROW}) -> NO_BATCH
    save_html(ROW, "run.html") -> NO_BATCH
    state_trace(torch.ones(5, 1, 2), spikes=ROW, neurons=1) -> NO_BATCH
    """
)
def test_wrong_arguments_are_refused(call: str, error: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(f"plot.{call}", error.replace("NO_BATCH", NO_BATCH), {**globals(), **NAMES})
    assert list(tmp_path.iterdir()) == []


def test_indices_and_numbers_are_checked() -> None:
    assert [check_index("n", place, 3) for place in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for place in (3, -4):
        with pytest.raises(ValueError, match=f"n must lie in 0 to 2, got {place}"):
            check_index("n", place, 3)
    for wrong in ("ab", [torch.ones(2)]):
        with pytest.raises((ValueError, RuntimeError), match="convert"):
            flat_numbers(wrong)
    measured = plot.MeasurementManager("m")
    for value in ("x", None, torch.ones(2)):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=r"float|convert|scalar"):
            measured.append(value)
    assert measured.measurement == []
