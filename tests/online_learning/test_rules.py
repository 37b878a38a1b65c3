"""Test that a rule of online learning is a value: an entry, and nothing else."""

import copy
import pickle
from typing import Any, get_args

import pytest
import torch

import tracetorch as tt
from tests.online_learning.cases import STEPS, assert_same, network, online_gradients
from tracetorch import snn
from tracetorch.online_learning.lanes import StepCall
from tracetorch.online_learning.rules import RULES, Rule
from tracetorch.online_learning.rules.learning_rule import Derivatives, LearningRule


def test_every_name_has_a_rule_of_that_name() -> None:
    assert tuple(RULES) == get_args(Rule)
    assert [rule.name for rule in RULES.values()] == list(RULES)


def test_a_learner_keeps_its_rule_in_copies() -> None:
    learner = tt.online(network(snn.LIF(5)), "eprop")
    learner(torch.rand(2, 6).double())
    for other in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert other._state.rule == RULES["eprop"]


def _halved(call: StepCall) -> Derivatives:
    block = call.derivatives()
    inputs = [None if each is None else each / 2 for each in block.by_input]
    return Derivatives(block._replace(by_input=inputs), ("half of the input",))


def test_a_new_rule_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    name: Any = "halved"
    monkeypatch.setitem(RULES, name, LearningRule("halved", _halved))
    net, x = network(snn.Readout(5)), torch.rand(STEPS, 4, 6).double()
    exact, halved = online_gradients(net, x), online_gradients(net, x, name)
    assert_same(halved["1.raw_beta"], exact["1.raw_beta"])
    assert not torch.allclose(halved["0.weight"], exact["0.weight"], rtol=0.05)
    learner = tt.online(net, name)
    learner(x[0])
    assert [path.reason for path in learner.dropped] == ["half of the input"]
    assert all(key.startswith("trace:halved:") for key in learner.extra_states())
