"""Test that traces travel: whatever a learner goes through, its gradients go on, or it says so."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, layer, sequence, stepped, through_save, weighted_sum
from tests.online_learning.cases import assert_same, convolution, named_gradients, network
from tracetorch import snn
from tracetorch.online_learning import OnlineLearner
from tracetorch.online_learning.rules import Rule

RULES = get_args(Rule)


def fresh(learner: OnlineLearner) -> OnlineLearner:
    """Return a learner at rest, of a model with the same parameters."""
    tt.zero_states(found := OnlineLearner(copy.deepcopy(learner.model), learner.rule))
    return found


def by_states(learner: OnlineLearner, folder: Path) -> OnlineLearner:
    states = tt.get_states(learner)
    found = fresh(learner)
    tt.set_states(found, states)
    return found


def by_states_in_place(learner: OnlineLearner, folder: Path) -> OnlineLearner:
    states = tt.get_states(learner)
    stepped(learner, sequence(2, 4, 6))
    tt.set_states(learner, states)
    return learner


def by_states_inside(learner: OnlineLearner, folder: Path) -> OnlineLearner:
    holder = nn.ModuleDict({"learner": learner})
    found = nn.ModuleDict({"learner": fresh(learner)})
    tt.set_states(found, tt.get_states(holder))
    inside: OnlineLearner = found["learner"]  # type: ignore[assignment]
    return inside


def by_file(learner: OnlineLearner, folder: Path) -> OnlineLearner:
    tt.save(learner, folder / "learner.safetensors", states=True)
    found = fresh(learner)
    tt.load(folder / "learner.safetensors", found, states=True)
    return found


WAYS: dict[str, Callable[[OnlineLearner, Path], OnlineLearner]] = {
    "copy": lambda learner, folder: copy.copy(learner),
    "deepcopy": lambda learner, folder: copy.deepcopy(learner),
    "pickle": lambda learner, folder: pickle.loads(pickle.dumps(learner)),
    "torch.save": lambda learner, folder: through_save(learner),
    "states": by_states,
    "states in place": by_states_in_place,
    "states inside": by_states_inside,
    "file": by_file,
    "to": lambda learner, folder: learner.to("cpu", torch.float64).train(),
    "state_dict": lambda learner, folder: (
        learner.load_state_dict(learner.state_dict()),
        learner,
    )[1],
}

MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "one layer": lambda: network(layer("SLIF", 5)),
    "filtered": lambda: network(layer("ALIF", 5), nn.Linear(5, 5), snn.Readout(5, beta_rank=0)),
    "convolution": convolution,
    "recurrent": lambda: network(snn.Recurrent(layer("LIF", 5), nn.Linear(5, 5))),
}


def assert_goes_on(model: nn.Sequential, rule: Any, way: str, folder: Path) -> None:
    x = sequence(6, 4, 6)
    whole = OnlineLearner(copy.deepcopy(model), rule)
    stepped(whole, x[:4])
    weighted_sum(stepped(whole, x[4:])).backward()
    first = OnlineLearner(copy.deepcopy(model), rule)
    stepped(first, x[:4])
    second = WAYS[way](first, folder)
    weighted_sum(stepped(second, x[4:])).backward()
    assert_same(named_gradients(second.model), named_gradients(whole.model))
    assert second.dropped == whole.dropped or "states" in way or way == "file"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_a_layer_go_on(rule: Any, way: str, tmp_path: Path) -> None:
    assert_goes_on(MODELS["one layer"](), rule, way, tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_through_a_filter_go_on(way: str, tmp_path: Path) -> None:
    assert_goes_on(MODELS["filtered"](), "exact", way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_every_model_go_on(name: str, rule: Any, way: str, tmp_path: Path) -> None:
    if name == "recurrent" and rule == "exact":
        pytest.skip("refused in the second step")
    assert_goes_on(MODELS[name](), rule, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*LAYERS, *NEURONS])
def test_gradients_of_every_neuron_go_on(name: str, rule: Any, way: str, tmp_path: Path) -> None:
    assert_goes_on(network(layer(name, 5)), rule, way, tmp_path)


def test_without_its_traces_a_gradient_differs() -> None:
    x = sequence(9, 4, 6)
    whole = OnlineLearner(MODELS["one layer"]())
    gradients = []
    for restart in (False, True):
        whole.zero_states()
        stepped(whole, x[:5])
        if restart:
            whole.detach_states()
        weighted_sum(stepped(whole, x[5:])).backward()
        gradients.append(named_gradients(whole.model)["0.weight"])
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_states_without_traces_are_constants() -> None:
    x = sequence(9, 4, 6)
    learner = OnlineLearner(MODELS["filtered"]())
    stepped(learner, x[:5])
    states = {f"model.{name}": state for name, state in tt.get_states(learner.model).items()}
    other = fresh(learner)
    tt.set_states(other, states)
    learner.detach_states()
    for each in (learner, other):
        weighted_sum(stepped(each, x[5:])).backward()
    assert_same(named_gradients(other.model), named_gradients(learner.model))


def test_a_copy_of_a_learner_whose_states_were_edited_is_refused_as_it_is() -> None:
    learner, x = OnlineLearner(MODELS["one layer"]()), sequence(9, 4, 6)
    stepped(learner, x[:5])
    tt.detach_states(learner.model)
    for way in ("copy", "deepcopy", "pickle", "torch.save", "to"):
        with pytest.raises(ValueError, match="has other states than the learner's last step left"):
            WAYS[way](learner, Path())(x[5])
    with pytest.raises(ValueError, match="has other states than the learner's last step left"):
        tt.get_states(learner)


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def rename(states: dict[str, Any]) -> None:
        states[new] = states.pop(old)

    return rename


TRACE = "trace:exact:1:0.weight:mem"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.update({TRACE: s[TRACE][:1]}), ValueError, "0.weight' in layer '1', .* shape"),
        (lambda s: s.update({TRACE: s[TRACE].float()}), ValueError, "must have shape .*float64"),
        (lambda s: s.update({TRACE: 1}), TypeError, "a trace must be a tensor, got int"),
        (renamed(TRACE, "trace:exact:1:0.weight:v"), ValueError, "does not fit .*there is no 'v'"),
        (renamed(TRACE, "trace:exact:7:0.weight:mem"), ValueError, "there is no '7'"),
        (renamed(TRACE, "trace:exact:1:3.weight:mem"), ValueError, "there is no '3.weight'"),
        (renamed(TRACE, "trace:exact:1:gamma:mem"), ValueError, "there is no 'gamma'"),
        (renamed(TRACE, "trace:exact:1"), ValueError, "there is no 'exact:1'"),
        (renamed(TRACE, "trace:exact:1:1:3:beta:mem"), ValueError, "there is no '3'"),
        (renamed(TRACE, "trace:eprop:1:0.weight:mem"), ValueError, "rule='eprop', and the learner"),
        (renamed(TRACE, "traces"), ValueError, "no state is called 'traces'"),
    ],
)
def test_traces_that_do_not_fit_change_nothing(change, error, message):
    learner, x = OnlineLearner(MODELS["one layer"]()), sequence(9, 4, 6)
    stepped(learner, x[:5])
    before = tt.get_states(learner)
    states: dict[str, Any] = dict(before)
    change(states)
    with pytest.raises(error, match=message):
        tt.set_states(learner, states)
    torch.testing.assert_close(tt.get_states(learner), before, rtol=0, atol=0)
    learner(x[5])


def test_names_of_traces_that_nobody_has() -> None:
    learner = OnlineLearner(MODELS["one layer"]())
    stepped(learner, sequence(5, 4, 6))
    states = tt.get_states(learner)
    tt.set_states(learner, {**states, "trace:exact:1:0.weight:": torch.zeros(0)})
    torch.testing.assert_close(tt.get_states(learner), states, rtol=0, atol=0)
    learner = OnlineLearner(MODELS["one layer"]())
    with pytest.raises(ValueError, match="there is no '1'"):
        tt.set_states(learner, {TRACE: torch.zeros(4, 5, 7, dtype=torch.float64)})
    net = nn.Sequential()
    net.add_module("a:b", snn.LIF(6))
    learner = OnlineLearner(net)
    learner(torch.ones(2, 6))
    with pytest.raises(ValueError, match="a colon in the path 'a:b'"):
        tt.get_states(learner)
