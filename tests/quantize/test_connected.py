"""Masks and signs of connections: kept by integers, by training, by conversion and by C."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few, weighted_sum
from tests.export.c_programs import CNetwork, needs_compiler
from tests.quantize.networks import case
from tracetorch import quantize, snn
from tracetorch.quantize.build import product_of
from tracetorch.snn.connectivity import RAW_WEIGHT, Connectivity, connectivity

NAMES = ("connected", pytest.param("connected channels", marks=pytest.mark.slow))


def rules(model: nn.Module) -> list[Connectivity]:
    """Return mask and signs of every product, in the order of the modules."""
    return [rule for m in model.modules() if (rule := connectivity(m)) is not None]


def integer_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of every integer product, in the same order."""
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


@pytest.mark.parametrize("name", NAMES)
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


def test_chips() -> None:
    torch.manual_seed(0)
    products = [nn.Linear(5, 8, bias=False), nn.Linear(8, 3, bias=False)]
    for product in products:
        mask = torch.rand(product.weight.shape) < 0.5
        snn.connect(product, mask=mask, signs=torch.tensor([1, -1] * 4)[: mask.shape[1]])
    layers = products[0], snn.SLIF(8, beta=0.75), products[1], snn.SLIF(3, beta=0.75)
    model, x = nn.Sequential(*layers), (torch.rand(9, 2, 5) < 0.5).float()
    prepared = quantize.prepare(model, x, chip=tt.chips.xylo.XYLO_2)
    train(prepared, x, 1)
    integer, _ = quantize.convert(prepared)
    for rule, weight in zip(rules(model), integer_weights(integer), strict=True):
        assert torch.equal(rule.nearest(weight), weight)
        assert weight.any()
