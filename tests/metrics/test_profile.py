from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import Net
from tests.unrolling.models import MODELS, dyadic, made
from tracetorch import metrics, snn


def network() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 4, 3), snn.LIF(4, dim=-3), nn.Flatten(), nn.Linear(64, 8))
    loop = snn.Recurrent(snn.SLIF(8), nn.Linear(8, 8))
    return nn.Sequential(*first, loop, nn.Linear(8, 3), snn.Readout(3))


def test_profile_equals_the_single_metrics() -> None:
    model, x = network(), 3 * torch.rand(9, 5, 1, 6, 6)
    table = metrics.profile(model, x, repeats=1)
    rows: dict[str, Any] = {row.path: row for row in table.rows}
    assert list(rows) == ["0", "1", "2", "3", "4.neuron", "4.connection", "5", "6"]
    shapes = [(4, 4, 4), (4, 4, 4), (64,), (8,), (8,), (8,), (3,), (3,)]
    assert [row.shape for row in table.rows] == shapes
    assert sum(row.parameters for row in table.rows) == metrics.parameter_count(model)
    assert table.operations == metrics.synaptic_operations(model, x)
    _, seen = tt.probe.record(model, x, ["1.output", "4.neuron.output"])
    for path, dim in (("1", -3), ("4.neuron", -1)):
        spikes, row = seen[f"{path}.output"], rows[path]
        often = metrics.saturated(spikes, dim=dim)
        figures = [metrics.firing_rate(spikes), metrics.dead(spikes, dim=dim), often]
        expected = pytest.approx([float(each.float().mean()) for each in figures])
        assert [row.rate, row.dead, row.saturated] == expected
    assert 0 < rows["1"].rate < 1
    updates = sum(row.updates or 0 for row in table.rows)
    assert updates == metrics.membrane_updates(model, x)
    wanted = metrics.energy(table.operations, updates=updates)
    assert table.energy == wanted
    assert sum(row.energy_pj or 0 for row in table.rows) == pytest.approx(wanted.total_pj)
    assert (rows["6"].rate, rows["2"].dense, rows["2"].energy_pj) == (None, None, None)
    assert (rows["1"].output_bytes, rows["1"].held_bytes) == (4 * 9 * 5 * 64, 4 * (8 + 5 * 64))
    assert rows["2"].output_bytes == 0  # a view
    assert rows["4.connection"].output_bytes == 4 * 9 * 5 * 8
    assert all(row.seconds > 0 for row in table.rows)
    assert sum(row.seconds for row in table.rows) < table.seconds


def test_parametrizations_belong_to_their_layer() -> None:
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
    model = nn.Sequential(first, snn.LIF(6), nn.Linear(6, 3), snn.Readout(3))
    table = metrics.profile(model, torch.ones(5, 2, 4), repeats=1)
    assert [row.path for row in table.rows] == ["0", "1", "2", "3"]
    assert sum(row.parameters for row in table.rows) == metrics.parameter_count(model)
    outputs, states = 5 * 2 * 6 * 4, 2 * 6 * 4
    assert table.rows[0].held_bytes == metrics.footprint(model[0])
    assert table.rows[1].held_bytes == metrics.footprint(model[1]) + states
    assert table.rows[0].output_bytes == table.rows[1].output_bytes == outputs


def test_profile_measures_the_time_of_each_layer() -> None:
    slow = Net(lambda m, x: m.wait(0.03) or x + 1, wait=time.sleep)
    model = nn.Sequential(snn.LIF(4), slow, nn.ReLU())
    table = metrics.profile(model, torch.rand(10, 1, 4), repeats=1)
    assert table.rows[1].seconds >= 0.03
    assert table.seconds >= table.rows[1].seconds
    assert metrics.profile(model, torch.rand(3, 1, 4), by="step").rows[1].seconds >= 0.09


def test_profile_prints_as_text_and_markdown() -> None:
    table = metrics.profile(network(), torch.rand(9, 5, 1, 6, 6), repeats=1)
    lines = str(table).splitlines()
    assert re.match(r"1 +LIF +4x4x4 +8 +\d+\.\d% +\d+\.\d% +\d+\.\d% +- +- +\S+ nJ", lines[3])
    markdown = table.to_markdown().splitlines()
    assert [line.count("|") for line in markdown[:11]] == [14] * 11
    for by_events, density, cell in (
        (None, None, "-"), (True, 0.25, "events 25.0%"), (False, None, "dense"),
    ):  # fmt: skip
        row = dataclasses.replace(table.rows[0], by_events=by_events, input_density=density)
        line = dataclasses.replace(table, rows=(row,)).to_markdown().splitlines()[2]
        assert line.split(" | ")[-3] == cell


def test_profile_of_a_single_layer() -> None:
    cost = metrics.EnergyAssumptions(mac_pj=0, ac_pj=0, update_pj=1, source="none")
    table = metrics.profile(snn.LIF(3), torch.ones(4, 2, 3), assumptions=cost)
    assert table.rows[0].path == ""
    assert table.energy.total_pj == metrics.membrane_updates(snn.LIF(3), torch.ones(4, 2, 3))
    assert "(model)" in str(table)


def test_rows_of_layers_that_return_no_tensor_are_not_called_or_cannot_be_counted() -> None:
    parts = {"cell": nn.LSTM(4, 3), "idle": nn.Linear(2, 2), "out": snn.LIF(3)}
    model: nn.Module = Net(lambda m, x: m.out(m.cell(x[None])[0][0]), **parts)
    lines = str(metrics.profile(model, torch.rand(5, 2, 4), by="step")).splitlines()
    assert lines[2].split()[:4] == ["cell", "LSTM", "-", "108"]
    assert lines[3].split()[:5] == ["idle", "Linear", "not", "called", "6"]
    model = nn.Sequential(nn.ConvTranspose1d(2, 2, 3), snn.LIF(2, dim=-2))
    row = metrics.profile(model, torch.ones(4, 1, 2, 5)).rows[0]
    assert (row.dense, row.energy_pj, row.parameters) == (None, None, 14)


@pytest.mark.parametrize("name", MODELS)
def test_figures_on_kernels_equal_those_of_plain_loops(name: str) -> None:
    model, x = made(name), dyadic(5, *MODELS[name][1])
    figures = []
    for backend in ("eager", "cpu"):
        with tt.fuse.backend(backend), tt.events.mode("never"):
            table = metrics.profile(model, x, repeats=1)
            sparsity = metrics.activation_sparsity(model, x)
        # only kernels compute with events, or say why not
        same: dict[str, Any] = {"seconds": 0.0, "by_events": None, "input_density": None}
        figures.append((sparsity, [dataclasses.replace(row, **same) for row in table.rows]))
    assert figures[0] == figures[1]
    assert sum(row.updates or 0.0 for row in figures[1][1]) > 0


@pytest.mark.slow
def test_profile_says_how_products_were_computed() -> None:
    model = nn.Sequential(nn.Linear(256, 256), snn.LIF(256), nn.Linear(256, 2))
    x = torch.zeros(50, 64, 256)
    x[..., :16] = 1
    with tt.fuse.backend("auto"):
        rows = metrics.profile(model, x, repeats=1).rows
        with tt.events.mode("never"):
            never = metrics.profile(model, x, repeats=1)
        x[..., :224] = 1
        table = metrics.profile(model, x, repeats=1)
    assert (rows[0].by_events, rows[0].input_density) == (True, 0.0625)
    assert [row.by_events for row in (*rows[1:], never.rows[0])] == [None, False, None]
    assert (table.rows[0].by_events, table.rows[0].input_density) == (False, 0.875)
    assert " dense 87.5% " in str(table)
