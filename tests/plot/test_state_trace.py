from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

import tracetorch as tt
from tests.plot.cases import STEPS, recording, spikes
from tracetorch import snn
from tracetorch.plot.axes import COLOURS


def levels(ax: Any) -> list[float]:
    """Heights of the dashed lines."""
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


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), [0.5], (torch.full((4,), 0.5),)])
def test_thresholds_can_be_numbers_or_tensors(value: Any) -> None:
    ax = tt.plot.state_trace(recording()["2.mem"], neurons=[0, 1], thresholds=value)
    assert levels(ax) == [0.5]


def test_thresholds_have_the_colours_of_neurons_and_recordings_are_drawn() -> None:
    each = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ax = tt.plot.state_trace(recording()["2.mem"], neurons=[1, 3], thresholds=each)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == list(COLOURS[:2])
    assert levels(ax) == [pytest.approx(0.2), pytest.approx(0.4)]
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(3, 4), snn.LIF(4))
    _, seen = tt.unroll(net, 4 * torch.rand(9, 2, 3), record=["mem", "output"])
    ax = tt.plot.state_trace(seen["1.mem"], spikes=seen["1.output"], thresholds=net[1])
    assert traces(ax)["neuron 0"] == seen["1.mem"][:, 0, 0].tolist()
    assert levels(ax) == [pytest.approx(1.0)]


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
