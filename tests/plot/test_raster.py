from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

import tracetorch as tt
from tests.plot.cases import STEPS, recording, spikes
from tracetorch import snn
from tracetorch.plot.axes import COLOURS


def ticks(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for lines in ax.collections:
        colour = "down" if lines.get_color()[0][:3].tolist() == list(to_rgb(COLOURS[1])) else "up"  # type: ignore[attr-defined]
        found.setdefault(colour, []).extend(
            (float(x), float(low + high) / 2)
            for (x, low), (_, high) in lines.get_segments()  # type: ignore[attr-defined]
        )
    return found


def test_ticks_are_at_the_spikes_with_and_without_a_batch() -> None:
    output = recording()["2.output"]
    found = ticks(tt.plot.raster(output, sample=1))
    for name, sign in (("up", 1), ("down", -1)):
        where = (output[:, 1] == sign).nonzero().tolist()
        assert [(x, pytest.approx(y)) for x, y in found[name]] == [tuple(w) for w in where]
    output = recording()["0.output"]
    last = tt.plot.raster(output, sample=-1)
    assert ticks(tt.plot.raster(output[:, 2], sample=None)) == ticks(last)
    assert len(ticks(tt.plot.raster(torch.ones(5), sample=None))["up"]) == 5


def test_layers_are_bands_of_equal_height_and_invalid_arguments_draw_nothing() -> None:
    ax = tt.plot.raster({"a": torch.ones(2, 1, 1), "b": torch.ones(2, 1, 99)})
    found: Any = ticks(ax)["up"]
    assert ax.get_ylim() == (2, 0)
    assert found[:2] == [(0, pytest.approx(0.5)), (1, pytest.approx(0.5))]
    rows = [y for x, y in found[2:] if x == 0]
    assert len(rows) == 99
    assert 1 < min(rows) < max(rows) < 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a\n1 neuron", "b\n99 neurons"]
    ax = tt.plot.line_graph([1.0], "kept")
    before = len(ax.get_children())
    wrong: dict[str, Tensor] = {"a": torch.ones(3, 2, 1), "b": torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match="raster: sample must lie in 0 to 0, got 1"):
        tt.plot.raster(wrong, sample=1, ax=ax)
    assert len(ax.get_children()) == before


def test_limit_sorts_active_neurons_by_activity_and_selects_evenly() -> None:
    output = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1.0], [0, 1, 0, 1]])[:, None]
    ax = tt.plot.raster(output, limit=9)
    counts = [sum(y == row for _, y in ticks(ax)["up"]) for row in range(3)]
    assert counts == [4, 2, 1]
    assert ax.get_ylabel() == "3 of 4 neurons"
    for silent in (tt.plot.raster(torch.zeros(4, 1, 2), limit=each) for each in (None, 3)):
        assert ticks(silent) in ({}, {"up": []})
        assert silent.get_xlim() == (-0.5, 3.5)
    many = spikes(20, 1, 1000)
    rows = [y for _, y in ticks(tt.plot.raster(many, limit=30))["up"]]
    fired = torch.tensor([rows.count(row) for row in range(30)])
    order = many.sum((0, 1)).sort(descending=True).values
    assert len(set(rows)) == 30
    assert fired[0] == order[0]
    assert (fired.diff() <= 0).all()
    assert fired[15] == pytest.approx(order[len(order) // 2].item(), abs=1)


def test_rows_of_trains_are_shades_or_ticks() -> None:
    ax = tt.plot.spike_train([torch.tensor([0.0, 0.5]), torch.tensor([-1.0, 0.25])])
    (image,) = ax.images
    assert image.get_array().tolist() == [[0, 0.5], [1, 0.25]]
    assert image.get_clim() == (0, 1)
    assert ax.get_ylim() == (1.5, -0.5)
    assert ax.get_title() == "Spike Train Raster"
    assert tt.plot.spike_train([torch.tensor([0.0, 4.0])]).images[0].get_clim() == (0, 4)
    output = spikes(3, 9)
    ax = tt.plot.spike_train(list(output), 2.0, 1.5, 0.7, "ticks", False)
    (lines,) = ax.collections
    where = [(2.0 * row, step) for row, step in output.nonzero().tolist()]
    found = [(s[:, 1].mean(), s[0, 0]) for s in lines.get_segments()]  # type: ignore[attr-defined]
    assert found == where
    assert {float(np.ptp(s[:, 1])) for s in lines.get_segments()} == {1.5}  # type: ignore[attr-defined]
    assert lines.get_linewidth()[0] == 0.7  # type: ignore[index]
    assert ax.get_title() == "ticks"
    for rows, every in ((12, 1), (13, 2), (30, 3)):  # at most 12 numbers, from 0
        ax = tt.plot.spike_train(list(torch.ones(rows, 2)), 2.0)
        labels = [(tick.get_text(), tick.get_position()[1]) for tick in ax.get_yticklabels()]
        assert labels == [(str(row), 2.0 * row) for row in range(0, rows, every)]


def levels(ax: Any) -> list[float]:
    return sorted(line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--")


def traces(ax: Axes) -> dict[str, list[float]]:
    return {
        str(line.get_label()): np.asarray(line.get_ydata()).tolist()
        for line in ax.lines
        if line.get_linestyle() == "-"
    }


def test_there_is_a_line_for_each_selected_neuron_and_state() -> None:
    mem = recording()["2.mem"]
    ax = tt.plot.state_trace(mem, neurons=[3, -4], sample=1)
    assert traces(ax) == {"neuron 3": mem[:, 1, 3].tolist(), "neuron 0": mem[:, 1, 0].tolist()}
    states = {"0.mem": recording()["2.mem"], "0.syn": spikes(STEPS, 3, 4)}
    ax = tt.plot.state_trace(states, neurons=2)
    assert traces(ax) == {path: value[:, 0, 2].tolist() for path, value in states.items()}
    both = tt.plot.state_trace(states, neurons=[1, 2])
    assert list(traces(both)) == ["0.mem[1]", "0.mem[2]", "0.syn[1]", "0.syn[2]"]


@pytest.mark.parametrize(
    ("layer", "shape", "neuron", "expected"),
    [
        (snn.BLIF(2, pos_threshold=torch.tensor([0.5, 2.0])), (3, 1, 2), 1, [-1.0, 2.0]),
        (snn.LIF(2, pos_threshold=torch.tensor([0.5, 2.0]), dim=-3), (3, 1, 2, 2, 3), 7, [2.0]),
        (snn.LIF(2, pos_threshold=torch.tensor([0.5, 2.0]), dim=1), (3, 1, 2, 2, 3), 5, [0.5]),
        (snn.LIF(3, pos_threshold=0.7, pos_threshold_rank=0), (3, 1, 3), 1, [0.7]),
        (snn.Readout(3), (3, 1, 3), 1, []),
    ],
)
def test_thresholds_are_read_from_the_layer(layer, shape, neuron, expected) -> None:
    ax = tt.plot.state_trace(torch.zeros(shape), neurons=neuron, thresholds=layer)
    assert levels(ax) == [pytest.approx(level) for level in expected]


def test_thresholds_have_the_colours_of_neurons() -> None:
    for value in (0.5, torch.tensor(0.5), [0.5], (torch.full((4,), 0.5),)):
        ax = tt.plot.state_trace(recording()["2.mem"], neurons=[0, 1], thresholds=value)
        assert levels(ax) == [0.5]
    each = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ax = tt.plot.state_trace(recording()["2.mem"], neurons=[1, 3], thresholds=each)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == list(COLOURS[:2])
    assert levels(ax) == [pytest.approx(0.2), pytest.approx(0.4)]


def test_spikes_are_above_and_negative_ones_below_the_traces() -> None:
    mem, output = recording()["2.mem"], recording()["2.output"]
    ax = tt.plot.state_trace(mem, neurons=1, spikes=output, thresholds=(0.9, -0.9))
    above, below = (lines.get_segments() for lines in ax.collections)  # type: ignore[attr-defined]
    for segments, sign in ((above, 1), (below, -1)):
        where = (output[:, 0, 1] == sign).nonzero().flatten().tolist()
        assert len(where) > 0
        assert [segment[0][0] for segment in segments] == where
    assert min(y for segment in above for y in segment[:, 1]) > max(0.9, float(mem[:, 0, 1].max()))
    assert max(y for segment in below for y in segment[:, 1]) < min(-0.9, float(mem[:, 0, 1].min()))
    low, high = ax.get_ylim()
    assert low < min(s[:, 1].min() for s in below)
    assert high > max(s[:, 1].max() for s in above)
