"""Test the learner: gradients against backpropagation through time, by name, in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, READOUTS, layer, sequence, stepped, weighted_sum
from tests.fuse.test_sequence import CustomNeuron
from tests.fuzz.draw import random_neuron
from tests.init.test_response import Quadratic
from tests.online_learning.cases import (
    STEPS,
    assert_exact,
    assert_same,
    named_gradients,
    network,
    online_gradients,
    two_layers,
)
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.online_learning.rules import RULES


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


@pytest.mark.parametrize("name", ONE)
def test_one_layer_is_exact(name: str) -> None:
    assert_exact(network(ONE[name]()), sequence(STEPS, 4, 6))


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
    own = dict(learner.named_parameters())
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
