"""Test traces: restarts, copies, the rules that share or shorten them, and their memory."""

import copy
import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

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
from tracetorch.online_learning.rules import Rule


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


def test_eprop_is_exact_where_nothing_is_dropped() -> None:
    # with a reset that has no gradient, one layer has no other path through its spikes
    setup: Any = {"beta_setup": {}, "pos_threshold_setup": {"learnable": False}}
    net = network(snn.LeakyIntegrator(5, **setup, detach_reset=True))
    x = sequence(STEPS, 4, 6)
    assert_same(online_gradients(net, x, "eprop"), bptt_gradients(net, x))


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
    assert counts[2][0] <= counts[1][0]
    assert counts[2][1] <= counts[1][1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    learner, x = tt.online(network(snn.LIF(5))), sequence(4, 6)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for number in range(10_000):
        if number == 2_000:
            before = resident()
        learner(x).sum().backward()
    # a step's graph alone has some 20 kB: kept, it would be hundreds of MB
    assert resident() - before < 4e6


# What a learner goes through: its gradients go on, or it says so

RULES = get_args(Rule)


def fresh(learner: OnlineLearner) -> OnlineLearner:
    """Return a learner at rest, of a model with the same parameters."""
    tt.zero_states(found := OnlineLearner(copy.deepcopy(learner.model), learner.rule))
    return found


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
    assert second.dropped == whole.dropped


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


@pytest.mark.parametrize("way", ["states", "file"])
def test_states_are_constants_to_go_on_from(way: str, tmp_path: Path) -> None:
    x = sequence(9, 4, 6)
    learner = OnlineLearner(MODELS["filtered"]())
    stepped(learner, x[:5])
    states = tt.get_states(learner)
    assert states.keys() == {f"model.{name}" for name in tt.get_states(learner.model)}
    other, file = fresh(learner), tmp_path / "learner.safetensors"
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


def test_traces_of_earlier_files_are_refused() -> None:
    learner = OnlineLearner(MODELS["one layer"]())
    traces = {"trace:exact:1:0.weight:mem": torch.zeros(4, 5, 7)}
    with pytest.raises(ValueError, match="no state is called 'trace:exact:1"):
        tt.set_states(learner, traces)


def test_a_copy_of_a_learner_whose_states_were_edited_is_refused_as_it_is() -> None:
    learner, x = OnlineLearner(MODELS["one layer"]()), sequence(9, 4, 6)
    stepped(learner, x[:5])
    tt.detach_states(learner.model)
    for way in ("copy", "deepcopy", "pickle", "torch.save", "to"):
        with pytest.raises(ValueError, match="has other states than the learner's last step left"):
            WAYS[way](learner, Path())(x[5])
