"""Networks quantised for a chip equal its simulator; masks and signs of connections are kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few, weighted_sum
from tests.chips.test_xylo import expected, simulated
from tests.export.c_programs import CNetwork, needs_compiler
from tests.quantize.networks import Residual, case, on_chip, spikes, widened
from tracetorch import chips, quantize, snn
from tracetorch.chips import xylo
from tracetorch.chips.target import ChipTarget, IntegerNeuron, Stage, register
from tracetorch.quantize.build import product_of
from tracetorch.snn.connectivity import RAW_WEIGHT, Connectivity, connectivity


@pytest.mark.parametrize("seed", few(range(8), 3))
@pytest.mark.parametrize("version", few([1, 2], 2))
def test_xylo_equals_int64_and_the_simulator(version: int, seed: int) -> None:
    model, x, arguments = on_chip(f"Xylo {version}", seed)
    prepared = quantize.prepare(model, x, **arguments)
    optimiser = torch.optim.Adam(prepared.parameters(), 3e-2)
    wanted = []
    for _ in range(2):
        tt.unroll(prepared, x, from_rest=True).sum().backward()
        optimiser.step()
        integer, report = quantize.convert(prepared)
        assert not [each for each in report.differences if "saturates" in each]
        configuration = xylo.configuration(integer)
        with torch.no_grad():
            found = tt.unroll(integer, x, from_rest=True)
            assert torch.equal(tt.unroll(prepared, x, from_rest=True), found)
        wanted.append((configuration, found))
    for run in (expected, simulated):
        for configuration, found in wanted:
            output = run(configuration, x.long().numpy())["output"]
            assert np.array_equal(output, found.numpy())


@pytest.mark.slow
def test_xylo_fires_several_spikes_a_step() -> None:
    model, x, arguments = on_chip("Xylo 2", 3)
    prepared = quantize.prepare(model, 3 * x, **arguments)
    path = "1.neuron.output" if isinstance(prepared[1], snn.Recurrent) else "1.output"
    _, seen = tt.unroll(prepared, 3 * x, record=[path])
    assert seen[path].max() > 1


def test_xylo_with_decays_by_shifts_is_near_the_float_network() -> None:
    torch.manual_seed(0)
    layer = snn.SLIF(20, 0.75, 0.875, 1.5), snn.SLIF(4, 0.5, 0.75, 1.5)
    linear = nn.Linear(6, 20, False), nn.Linear(20, 4, False)
    for each in linear:
        nn.init.uniform_(each.weight, -0.2, 0.6)
    model = nn.Sequential(linear[0], layer[0], linear[1], layer[1])
    x = spikes(40, 8, 6, share=0.2)
    prepared = quantize.prepare(model, x, chips.xylo.XYLO_1)
    _, report = quantize.convert(prepared)
    assert report.differences == ()
    first, last = tt.unroll(model, x).detach(), tt.unroll(prepared, x).detach()
    assert abs(float(last.sum() / first.sum()) - 1) < 0.25
    assert report.layers[0].output_error < 0.15


def test_what_exceeds_a_chip_is_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 70), snn.LIF(70), nn.Linear(70, 70, False), snn.SLIF(70))
    model.extend([nn.Linear(70, 9), snn.SLIF(9)])
    nn.init.constant_(model.get_parameter("2.weight"), 0.1)
    _, report = quantize.convert(quantize.prepare(model, spikes(5, 2, 20), chips.xylo.XYLO_2))
    assert report.misfits == (
        *("20 inputs, Xylo 2 has 16", "9 outputs, Xylo 2 has 8"),
        "1: 70 connections out of one, Xylo 2 has 64",
    )
    assert report.differences[0].startswith("1 (LIF) has a synapse, which spreads its input")
    assert "beta is the nearest 1 - 2^-n" in report.differences[1]
    assert "does not fit: 20 inputs" in str(report)
    assert "differs: 1 (LIF) has a synapse" in str(report)


def test_a_sum_that_saturates_on_the_way_is_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), snn.SLIF(2), nn.Linear(2, 1), snn.SLIF(1))
    x = 15 * torch.ones(4, 1, 2)
    prepared = quantize.prepare(model, x, chips.xylo.XYLO_2)
    integer, _ = quantize.convert(prepared)
    product, output = integer.get_submodule("0"), integer.get_submodule("3")
    assert isinstance(product, tt.integers.Linear)
    assert isinstance(output, xylo.LIF)
    product.shift = 7  # 15 spikes of 127 and as many of -100, each shifted: the order matters
    product.weight.copy_(torch.tensor([[127, -100], [127, -100]]))
    integer.get_buffer("2.weight").fill_(127)
    output.pos_threshold = 1.0
    departures = prepared.plan.target.departures(integer, x)
    assert "order of adding" in departures[0]
    assert tt.get_states(integer) == {}
    product.weight.zero_()
    assert prepared.plan.target.departures(integer, x) == []


MINE = replace(
    xylo.XYLO_2, name="Mine", inputs=None, hidden=None, outputs=None, fan_out=None, input_spikes=1
)


@dataclass(frozen=True)
class MineTarget(ChipTarget):
    """A chip that has the neuron of tt.integers, with decays that do not learn."""

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        layer, kept = stage.layer, (4096 * stage.layer.beta.detach()).round()
        kind = partial(tt.integers.LeakyIntegrator, layer.num_neurons, layer.dim)
        kind = partial(kind, decay=tt.integers.Multiplier(12))
        learned = self.learned(stage, unit, 1 / unit, {"low": -4095, "high": 4095}, self.limit)
        return IntegerNeuron(kind, {"beta": kept}, learned, torch.ones(()), 1)


def test_a_chip_that_registers_itself_is_one_to_quantise_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tracetorch.chips.target._TARGETS", {})
    register(MINE, MineTarget)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), snn.LIF(3), nn.Linear(3, 1), snn.LIF(1))
    x = spikes(20, 4, 2)
    prepared = quantize.prepare(widened(model), x, MINE)
    integer, report = quantize.convert(prepared)
    assert torch.equal(tt.unroll(integer, x), tt.unroll(prepared, x))
    assert report.misfits == report.differences == ()
    assert max(layer.output_error for layer in report.layers) < 0.05
    with pytest.raises(ValueError, match=r"one that tt\.chips has, Mine, got Xylo 2"):
        quantize.prepare(model, x, xylo.XYLO_2)
    with pytest.raises(ValueError, match="no branches that are added on Mine"):
        quantize.prepare(Residual(snn.LIF), spikes(9, 2, 5), MINE)


def rules(model: nn.Module) -> list[Connectivity]:
    return [rule for m in model.modules() if (rule := connectivity(m)) is not None]


def integer_weights(model: nn.Module) -> list[Tensor]:
    found = [m for m in model.modules() if hasattr(m, "weight_bits")]
    return [product_of(m)[0].weight.detach().float() for m in found]


def assert_kept(kept: list[Connectivity], weights: list[Tensor]) -> None:
    assert len(kept) == len(weights) > 2
    for rule, weight in zip(kept, weights, strict=True):
        assert rule.mask is not None
        assert rule.signs is not None
        assert bool((weight[~rule.mask] == 0).all())
        assert bool((weight * rule.signs >= 0).all())
        assert bool(weight.any())


def train(prepared: Any, x: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(prepared.parameters(), 5e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        weighted_sum(tt.unroll(prepared, x, from_rest=True)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", few(["connected", "connected channels"], "connected"))
def test_integers_keep_masks_and_signs(name: str) -> None:
    model, x, _ = case(name)
    kept = rules(model)
    prepared = quantize.prepare(model, x)
    before = [w.clone() for w in integer_weights(prepared)]
    assert_kept(kept, before)
    assert all(layer.weight_error < 0.02 for layer in quantize.convert(prepared)[1].layers)
    train(prepared, x)
    after = integer_weights(prepared)
    assert_kept(kept, after)
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    integer, _ = quantize.convert(prepared)
    assert all(torch.equal(a, b) for a, b in zip(after, integer_weights(integer), strict=True))


def test_a_weight_that_learning_has_taken_past_zero_is_mirrored() -> None:
    """As in the float layer: the raw value acts by its size."""
    layer = snn.connect(nn.Linear(3, 2, bias=False), signs=torch.tensor([1, -1, 1]))
    x = (torch.rand(9, 2, 3) < 0.5).float()
    prepared = quantize.prepare(nn.Sequential(layer, snn.LIF(2)), x)
    raw = prepared.get_parameter("0.parametrizations.weight.original")
    before = integer_weights(prepared)[0]
    with torch.no_grad():
        raw.neg_()
    assert torch.equal(integer_weights(prepared)[0], before)
    integer, report = quantize.convert(prepared)
    assert torch.equal(integer_weights(integer)[0], before)
    assert report.layers[0].weight_error < 0.05


def test_what_does_not_learn_stays_so_and_copies_go_their_own_way() -> None:
    layer = snn.connect(nn.Linear(3, 2), mask=torch.eye(2, 3) > 0)
    layer.get_parameter(RAW_WEIGHT).requires_grad_(False)
    x = (torch.rand(9, 2, 3) < 0.5).float()
    prepared = quantize.prepare(nn.Sequential(layer, snn.LIF(2)), x)
    assert not prepared.get_parameter("0.parametrizations.weight.original").requires_grad
    again = copy.deepcopy(prepared)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(tt.unroll(again, x), tt.unroll(prepared, x))
    (rule,) = rules(layer)
    assert again.get_buffer("0.parametrizations.weight.0.mask") is not rule.mask


@needs_compiler
@pytest.mark.parametrize("name", few(["connected", "residual", "unlike branches"], "connected"))
def test_c_is_what_training_ran_through(name: str, tmp_path: Path) -> None:
    model, x, _ = case(name)
    prepared = quantize.prepare(model.eval(), x[:, :1])
    integer, _ = quantize.convert(prepared)
    net = CNetwork(integer, x[:, :1], tmp_path, dtype="int")
    with torch.no_grad():
        expected = tt.unroll(prepared, x[:, :1], from_rest=True).flatten(1)
    assert torch.equal(net(x[:, :1]), expected.double())
    assert expected.any()
