"""Test traces: restarts, copies, the rules that share or shorten them, and their memory."""

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import tracetorch as tt
from tests.cases import (
    LAYERS,
    NEURONS,
    layer,
    sequence,
    stepped,
    through_save,
    vary,
    weighted_sum,
)
from tests.online_learning.cases import (
    STEPS,
    assert_same,
    bptt_gradients,
    convolution,
    named_gradients,
    network,
    online_gradients,
    two_layers,
)
from tracetorch import snn
from tracetorch.online_learning import OnlineLearner
from tracetorch.online_learning.rules import RULES


@pytest.mark.parametrize(
    "build",
    [
        lambda: network(layer("SLIF", 5)),
        lambda: network(layer("RLIF", 5), nn.Linear(5, 5), snn.Readout(5, beta_rank=0)),
        convolution,
    ],
    ids=["one layer", "filtered", "convolution"],
)
def test_samples_restart_by_themselves(build: Callable[[], nn.Sequential]) -> None:
    net, x = build(), sequence(12, 4, 6)
    where = torch.tensor([True, False, False, True])
    grads = []
    for module in (net, tt.online(net)):
        tt.zero_states(net)
        total = torch.zeros((), dtype=torch.float64)
        for number, step in enumerate(x):
            if number == 5:
                tt.zero_states(module, where=where)
            total = total + (number + 1) * weighted_sum(module(step))
        total.backward()
        grads.append(named_gradients(net))
    assert_same(grads[1], grads[0])


@pytest.mark.parametrize(
    "build", [lambda: network(snn.SLIF(5)), pytest.param(convolution, marks=pytest.mark.slow)]
)
def test_ottt_is_eprop_where_neurons_decay_alike(build: Callable[[], nn.Sequential]) -> None:
    net, x = build(), sequence(STEPS, 4, 6)
    eprop, ottt = (online_gradients(net, x, rule) for rule in ("eprop", "ottt"))
    assert_same(ottt, eprop)
    vary(net)
    eprop, ottt = (online_gradients(net, x, rule) for rule in ("eprop", "ottt"))
    name = next(name for name in eprop if name.endswith("weight"))
    assert not torch.allclose(ottt[name], eprop[name], rtol=1e-3)


def test_last_layer_of_two_is_exact() -> None:
    net, x = two_layers(), sequence(STEPS, 4, 6)
    found, expected = online_gradients(net, x, "eprop"), bptt_gradients(net, x)
    for name in ("2.weight", "2.bias", "3.raw_beta", "4.weight", "4.bias"):
        assert_same(found[name], expected[name])
    assert not torch.allclose(found["0.weight"], expected["0.weight"], rtol=1e-2)


def live_tensors() -> tuple[int, int]:
    """Count all tensors that there are, and their bytes."""
    gc.collect()
    tensors = (each for each in gc.get_objects() if issubclass(type(each), Tensor))
    found = [each for each in tensors if not is_lazy(each)]
    # by the class: a tensor that a step of another test kept has no sizes of its own
    return len(found), sum(Tensor.numel(each) * each.element_size() for each in found)


def test_steps_leave_nothing_behind() -> None:
    learner, x = tt.online(two_layers(), "eprop"), sequence(4, 6)
    counts = []
    for _ in range(3):
        for _ in range(20):
            learner(x).sum().backward()
        counts.append(live_tensors())
    # what other tests have left may go meanwhile
    assert all(late <= early for late, early in zip(counts[2], counts[1], strict=True))


# What a learner goes through: its gradients go on, or it says so

WAYS: dict[str, Callable[[OnlineLearner, Path], OnlineLearner]] = {
    "copy": lambda learner, folder: copy.copy(learner),
    "deepcopy": lambda learner, folder: copy.deepcopy(learner),
    "pickle": lambda learner, folder: pickle.loads(pickle.dumps(learner)),
    "torch.save": lambda learner, folder: through_save(learner),
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


ONE = {"one layer": RULES, "filtered": ("exact",)}
GO_ON = [
    pytest.param(name, rule, marks=[] if rule in ONE.get(name, ()) else [pytest.mark.slow])
    for name in (*MODELS, *LAYERS, *NEURONS)
    for rule in RULES
    if (name, rule) != ("recurrent", "exact")  # refused in the second step
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "rule"), GO_ON)
def test_gradients_go_on_until_states_are_detached(
    name: str, rule: Any, way: str, tmp_path: Path
) -> None:
    model = MODELS[name]() if name in MODELS else network(layer(name, 5))
    x, found = sequence(8, 4, 6), []
    for change in (lambda learner, folder: learner, WAYS[way]):
        learner = OnlineLearner(copy.deepcopy(model), rule)
        stepped(learner, x[:4])
        learner = change(learner, tmp_path)
        total = weighted_sum(stepped(learner, x[4:6]))
        learner.detach_states()
        (total + weighted_sum(stepped(learner, x[6:]))).backward()
        found.append((named_gradients(learner.model), learner.dropped))
    assert_same(found[1][0], found[0][0])
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize("way", ["states", "file"])
def test_states_are_constants_to_go_on_from(way: str, tmp_path: Path) -> None:
    x = sequence(9, 4, 6)
    learner = OnlineLearner(MODELS["filtered"]())
    stepped(learner, x[:5])
    states = tt.get_states(learner)
    assert states.keys() == {f"model.{name}" for name in tt.get_states(learner.model)}
    other, file = copy.deepcopy(learner), tmp_path / "learner.safetensors"
    other.zero_states()
    tt.save(learner, file, states=True)
    for each in (other, learner):
        if way == "states":
            tt.set_states(each, states)
        else:
            tt.load(file, each, states=True)
    with pytest.raises(ValueError, match=r"other states than .* Call zero_states\(\) or detach_st"):
        learner(x[5])
    learner.detach_states()
    for each in (learner, other):
        weighted_sum(stepped(each, x[5:])).backward()
    assert_same(named_gradients(other.model), named_gradients(learner.model))


@pytest.mark.parametrize("edit", ["in place", "assigned", "detached"])
@pytest.mark.parametrize("way", [None, "copy", "deepcopy", "pickle", "torch.save", "to"])
def test_states_set_from_outside_are_refused_also_in_a_copy(way: str | None, edit: str) -> None:
    learner, x = OnlineLearner(MODELS["one layer"]()), sequence(9, 4, 6)
    stepped(learner, x[:5])
    neuron: Any = learner.model[1]  # type: ignore[index]
    with torch.no_grad():
        if edit == "in place":
            neuron.mem[0] = 0
        elif edit == "assigned":
            neuron.mem = neuron.mem.clone()
        else:
            tt.detach_states(learner.model)
    copied = WAYS[way](learner, Path()) if way else learner
    with pytest.raises(ValueError, match=r"layer '1', .* has other states than the learner's last"):
        copied(x[5])
    tt.zero_states(copied.model)
    copied(x[5, :3])
