"""Test the comparison with backpropagation through time: cosines, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tests.cases import layer, sequence, weighted_sum
from tests.online_learning.cases import STEPS, network
from tracetorch import snn


@pytest.mark.parametrize("rule", ["eprop", "ottt"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_certificate_is_positive_for_two_layers(rule: Any, recurrent: bool) -> None:
    torch.manual_seed(0)
    hidden: snn.SequenceLayer = snn.LIF(30)
    if recurrent:
        hidden = snn.Recurrent(hidden, nn.Linear(30, 30))
    net = nn.Sequential(nn.Linear(20, 30), hidden, nn.Linear(30, 4), snn.Readout(4))
    x, target = (torch.rand(30, 8, 20) < 0.3).float() * 1.5, torch.arange(8) % 4
    before = {n: p.clone() for n, p in net.named_parameters()}

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(y.mean(0), target)

    cosines = tt.online(net, rule).certificate((x, target), loss)
    assert cosines.keys() == before.keys()
    assert min(cosines.values()) > 0.5
    assert cosines["2.weight"] == pytest.approx(1.0)
    assert cosines["0.weight"] < 0.999
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert tt.get_states(net) == {}


def test_certificate_of_an_exact_rule_is_one() -> None:
    net = network(layer("BSRLIF", 5))
    cosines = tt.online(net).certificate((sequence(STEPS, 4, 6),), weighted_sum)
    assert min(cosines.values()) == pytest.approx(1.0)


def test_certificate_repeats_a_static_input() -> None:
    net, x = network(layer("LIF", 5)), sequence(4, 6)
    expected = tt.online(net).certificate((x.expand(STEPS, 4, 6),), weighted_sum)
    learner = tt.online(net, "eprop")
    assert tt.online(net).certificate((x,), weighted_sum, steps=STEPS) == pytest.approx(expected)
    assert not learner.dropped
    learner.certificate((x,), weighted_sum, steps=STEPS)
    assert [each.origin for each in learner.dropped] == ["1"]


def test_certificate_does_not_depend_on_the_mode_of_the_caller() -> None:
    learner, batch = tt.online(network(layer("LIF", 5)), "eprop"), (sequence(9, 4, 6),)
    expected = learner.certificate(batch, weighted_sum)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert learner.certificate(batch, weighted_sum) == expected


def test_wrong_batch() -> None:
    with pytest.raises(TypeError, match=r"batch must be a tuple .* got a tensor"):
        tt.online(snn.LIF(2)).certificate(torch.ones(3, 2, 2), weighted_sum)  # type: ignore[arg-type]
