"""Test the learner: gradients against backpropagation through time, by name, in float64."""

import copy
import gc
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy

import tracetorch as tt
from tests.cases import (
    LAYERS,
    NEURONS,
    READOUTS,
    layer,
    sequence,
    stepped,
    through_save,
    vary,
    weighted_sum,
)
from tests.fuse.test_sequence import CustomNeuron
from tests.fuzz.draw import random_neuron
from tests.init.test_response import Quadratic
from tests.online_learning.cases import (
    STEPS,
    assert_exact,
    assert_same,
    bptt_gradients,
    convolution,
    named_gradients,
    network,
    online_gradients,
    two_layers,
)
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.online_learning import OnlineLearner
from tracetorch.online_learning.rules import RULES


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", NEURONS)
def test_neuron_of_the_literature_is_exact(name: str) -> None:
    net: Any = network(layer(name, 5))
    with torch.no_grad():  # what excites it, on its own scale
        net[0].weight.abs_().mul_(NEURONS[name])
        net[0].bias.zero_()
    x = sequence(STEPS, 4, 6).abs()
    assert tt.unroll(net[:2], x, from_rest=True).any()
    assert_exact(net, x)


ONE: dict[str, Callable[[], snn.Neuron]] = {
    **{name: partial(layer, name, 5) for name in LAYERS},
    "custom": partial(CustomNeuron, 5),
    "quadratic": partial(Quadratic, 5),
    **{f"random {seed}": partial(random_neuron, seed) for seed in range(8)},
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ONE)
def test_one_layer_is_exact(name: str) -> None:
    assert_exact(network(ONE[name]()), sequence(STEPS, 4, 6))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("hidden", ["LIF", "BSRLIF", "custom"])
def test_hidden_layer_is_exact_before_a_readout_with_one_decay(hidden: str, readout: str) -> None:
    emas = {"S": ("alpha",), "R": ("gamma", "rec_weight")}
    ranks = [f"{n}_rank" for kind in readout.removesuffix("eadout")[:-1] for n in emas[kind]]
    last = layer(readout, 4, beta_rank=0, **dict.fromkeys(ranks, 0))
    first = CustomNeuron(5) if hidden == "custom" else layer(hidden, 5)
    net = nn.Sequential(
        nn.Linear(6, 5), first, nn.ReLU(), nn.Linear(5, 4), last, nn.Linear(4, 2)
    ).double()
    assert_exact(net, sequence(STEPS, 4, 6))


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("rank", [0, 1])
def test_options_and_ranks_are_exact(reset: Any, rank: Any) -> None:
    setup = {"rank": rank}
    neuron = snn.LeakyIntegrator(5, -1, *[setup] * 9, reset=reset, detach_reset=rank == 0)
    assert_exact(network(neuron), sequence(STEPS, 4, 6))


@pytest.mark.parametrize("of", ["several steps", "states"])
def test_any_loss_is_exact(of: str) -> None:
    net, x = network(layer("SRLIF", 5)), sequence(STEPS, 4, 6)
    grads = []
    for module in (net, tt.online(net)):
        tt.zero_states(net)
        y = stepped(module, x)
        if of == "states":
            weighted_sum(tt.get_states(net, detach=False)["1.mem"]).backward()
        else:
            y.mean(0).square().sum().backward()
        grads.append(named_gradients(net))
    assert_same(grads[1], grads[0])


def test_given_and_detached_states_are_constants_and_a_failed_step_changes_nothing() -> None:
    net, x = network(layer("RLIF", 5)), sequence(15, 4, 6)
    grads = []
    for module in (net, tt.online(net)):
        tt.zero_states(net)
        stepped(net, x[:3])
        tt.detach_states(net)
        total = weighted_sum(stepped(module, x[3:6]))
        with pytest.raises(ValueError, match="holds the state"):
            module(x[0, :2])
        total = total + weighted_sum(stepped(module, x[6:9]))
        tt.detach_states(module)
        (total + weighted_sum(stepped(module, x[9:]))).backward()
        grads.append(named_gradients(net))
    assert_same(grads[1], grads[0])


def test_outputs_and_states_are_those_of_the_model() -> None:
    net, x = network(layer("BSRLIF", 5), nn.Linear(5, 5), layer("SReadout", 5)), sequence(9, 4, 6)
    expected = stepped(net, x)
    states = tt.get_states(net)
    for rule in ("eprop", "ottt", "local"):
        tt.zero_states(net)
        assert torch.equal(stepped(tt.online(net, rule), x), expected)
        torch.testing.assert_close(tt.get_states(net), states, rtol=0, atol=0)


def test_local_is_a_step_with_constant_states() -> None:
    net, x = two_layers(), sequence(STEPS, 4, 6)
    found = online_gradients(net, x, "local")
    weights = torch.linspace(-1, 2, STEPS * 4 * 3, dtype=x.dtype).view(STEPS, 4, 3)
    for step, weight in zip(x, weights, strict=True):
        tt.detach_states(net)
        out = net(step)
        (weight * out + out.square()).sum().backward()
    torch.testing.assert_close(found, named_gradients(net))


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_has_gradients_of_zero(rule: Any) -> None:
    readout = snn.Readout(2, beta_rank=0)
    learner = tt.online(nn.Sequential(nn.Linear(3, 4), snn.LIF(4), nn.Linear(4, 2), readout), rule)
    for _ in range(2):
        learner(torch.rand(0, 3)).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in learner.parameters())


def checkpointed(learner: nn.Module, x: Tensor) -> None:
    y = [torch.utils.checkpoint.checkpoint(learner, step, use_reentrant=False) for step in x]
    torch.stack(y).sum().backward()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda f, x: tt.unroll(f, x, by="step", segment=3), r"which \w+ does not allow"),
        (tt.unroll, r"takes one step at a time.*by=\"step\""),
        (torch.no_grad()(lambda f, x: f(x[0])), r"gradients, which are disabled .* learner\.model"),
        (lambda f, x: torch.vmap(f)(x), "cannot run in torch.func transforms, vmap or grad say"),
        (
            lambda f, x: torch.func.grad(lambda x: f(x).sum())(x[0]),
            "cannot run in torch.func transforms, vmap or grad say",
        ),
        (checkpointed, r"was called inside backward\(\), by activation checkpointing"),
    ],
    ids=["segment", "by layer", "no gradients", "vmap", "grad", "checkpoint"],
)
@pytest.mark.parametrize("rule", RULES)
def test_what_repeats_or_transforms_a_step_is_refused(rule: Any, run: Any, message: str) -> None:
    learner, x = tt.online(network(snn.LIF(5)), rule), sequence(5, 4, 6)
    with pytest.raises(ValueError, match=message):
        run(learner, x)
    learner.zero_states()
    assert stepped(learner, x).requires_grad


# PyTorch silences this itself where warnings are not errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("way", ["functional_call", "compiled", "in a compiled function"])
@pytest.mark.parametrize("rule", RULES)
def test_other_calls_of_a_learner_are_as_its_own(rule: Any, way: str) -> None:
    x = sequence(5, 4, 6)
    learner = tt.online(network(layer("SLIF", 5)), rule)
    weighted_sum(stepped(learner, x)).backward()
    expected = named_gradients(learner.model)
    learner.zero_states()
    own: dict[str, Tensor] = dict(learner.named_parameters())
    call: Any = {
        "functional_call": lambda x: torch.func.functional_call(learner, own, (x,)),
        "compiled": torch.compile(learner, backend="eager"),
        "in a compiled function": torch.compile(lambda x: learner(x), backend="eager"),
    }[way]
    weighted_sum(stepped(call, x)).backward()
    assert_same(named_gradients(learner.model), expected)


@pytest.mark.parametrize("change", ["added", "removed", "replaced"])
@pytest.mark.parametrize("rule", ["exact", "local"])
def test_another_neuron_layer_is_refused(rule: Any, change: str) -> None:
    learner, x = tt.online(network(snn.LIF(5)), rule), sequence(5, 4, 6)
    model: Any = learner.model
    learner(x[0])
    if change == "added":
        model.append(snn.Readout(3))
    else:
        model[1] = nn.Identity() if change == "removed" else snn.LIF(5)
    with pytest.raises(ValueError, match=r"has been added, removed or replaced since the learner"):
        learner(x[1])


@refusals(
    r"""
    tt.online("no model") -> TypeError: expected an nn.Module, got str
    tt.online(nn.Linear(2, 2)) -> ValueError: Linear has no neuron layer
    tt.online(snn.LIF(2)).certificate(torch.ones(3, 2, 2), weighted_sum)
        -> TypeError: batch must be a tuple .* got a tensor
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    check(call, error, globals())


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


def test_certificates_of_an_exact_rule_of_a_static_input_and_of_any_mode() -> None:
    net = network(layer("BSRLIF", 5))
    cosines = tt.online(net).certificate((sequence(STEPS, 4, 6),), weighted_sum)
    assert min(cosines.values()) == pytest.approx(1.0)
    net, x = network(layer("LIF", 5)), sequence(4, 6)
    learner = tt.online(net, "eprop")
    expected = learner.certificate((x.expand(STEPS, 4, 6),), weighted_sum)
    assert [each.origin for each in learner.dropped] == ["1"]
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            assert learner.certificate((x,), weighted_sum, steps=STEPS) == pytest.approx(expected)


# Traces: restarts, copies, the rules that share or shorten them, and their memory


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
    "state_dict": lambda one, folder: (one.load_state_dict(one.state_dict()), one)[1],
}

MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "one layer": lambda: network(layer("SLIF", 5)),
    "filtered": lambda: network(layer("ALIF", 5), nn.Linear(5, 5), snn.Readout(5, beta_rank=0)),
    "convolution": convolution,
    "recurrent": lambda: network(snn.Recurrent(layer("LIF", 5), nn.Linear(5, 5))),
}


FAST = {"one layer": RULES, "filtered": ("exact",)}
GO_ON = [
    pytest.param(name, rule, marks=[] if rule in FAST.get(name, ()) else [pytest.mark.slow])
    for name in (*MODELS, *LAYERS, *NEURONS)
    for rule in RULES
    if (name, rule) != ("recurrent", "exact")  # refused in the second step
]


@pytest.mark.one_in(2)
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
