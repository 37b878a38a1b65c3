"""Test one step: what stands around a layer, and what no trace follows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import tracetorch as tt
from tests.cases import Slope, layer, module, sequence, weighted_sum
from tests.online_learning.cases import (
    STEPS,
    assert_exact,
    assert_refused,
    assert_same,
    named_gradients,
    network,
)
from tests.unrolling.memories import Says
from tracetorch import snn


class Parallel(nn.Module):
    """Two neuron layers beside each other, one of which gets the sum of two products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 5) for _ in range(3))
        self.left, self.right = layer("SLIF", 5), layer("RLIF", 5)

    def forward(self, x: Tensor) -> Tensor:
        drive = torch.tanh(self.first(x)) * 2 + self.second(x)
        return self.left(drive) * self.right(self.third(x).relu_())


def fed(forward: Any) -> Any:
    """A product, noise and a layer."""
    parts = {"product": nn.Linear(6, 5), "noise": snn.Noise(5, seed=0), "neuron": layer("SLIF", 5)}
    return module(forward, **parts)


def alone(forward: Any) -> Any:
    return module(forward, neuron=snn.LIF(6))


zero: Any = tt.zero_states
CHANGED = "layer 'neuron', .* has its states changed inside forward"


def tied() -> nn.Module:
    product = nn.Linear(6, 6)
    return nn.Sequential(product, layer("LIF", 6), product)


def hooked() -> nn.Module:
    """Forward hooks that change outputs and inputs, or only look, beside products and neurons."""
    net = nn.Sequential(
        nn.Linear(6, 5), layer("LIF", 5), nn.Linear(5, 4), layer("Readout", 4, beta_rank=0)
    )
    net[0].register_forward_hook(lambda module, args, y: 2 * y)
    net[0].register_forward_hook(lambda module, args, y: None)
    net[1].register_forward_pre_hook(lambda module, args: (args[0].tanh() * 2,))
    net[1].register_forward_hook(lambda module, args, y: 3 * y)
    net[2].register_forward_hook(lambda module, args, y: y.mul_(0.5))
    return net


class Inner(snn.Neuron):
    """A noise of its own, and an input that is given, whose sizes are learned."""

    inputs = ("x", "noise", "modulator")
    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.noise = snn.Noise(num_neurons, seed=0)
        self.decay("beta", 0.9)
        self.weight("size", 0.3)
        self.threshold("pos_threshold", 0.5)

    @staticmethod
    def step(x, noise, modulator, mem, *, beta, size, pos_threshold, spike):
        mem = beta * mem + modulator * x + size * noise
        fired = spike(mem - pos_threshold)
        return fired, mem - fired * pos_threshold


class Modulated(nn.Module):
    """A neuron with three inputs: the product, its noise, and a value for each sample."""

    def __init__(self, named: bool, gradient: bool = False) -> None:
        super().__init__()
        self.product, self.neuron = nn.Linear(6, 5), Inner(5)
        self.named = named
        self.gate = nn.Parameter(torch.ones(()), requires_grad=gradient)

    def forward(self, x: Tensor) -> Tensor:
        modulator = self.gate * x.detach().mean(-1, keepdim=True).abs()
        y = self.product(x)
        return self.neuron(y, modulator=modulator) if self.named else self.neuron(y, modulator)


class Doubling(snn.LIF):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(x.tanh())


class OwnStep(snn.LIF):
    def forward_step(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().forward_step(x)


def own_forward(module: Any) -> nn.Sequential:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    return nn.Sequential(module, layer("LIF", 6))


PLACED = {
    "places": lambda: nn.Sequential(nn.Linear(6, 5), layer("LIF", 5)),
    "between": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), layer("SLIF", 5), nn.Tanh()),
    "no product": lambda: nn.Sequential(layer("LIF", 6), nn.Linear(6, 2)),
    "parallel": Parallel,
    "tied": tied,
    "noise": lambda: nn.Sequential(
        fed(lambda s, x: s.neuron(s.product(x) + 0.3 * s.noise(x[..., :5])))
    ),
    "noise inside": lambda: nn.Sequential(Modulated(named=False)),
    "hooks": lambda: hooked(),
    "forward called": lambda: fed(lambda s, x: s.neuron.forward(s.product(x))),
    "forward of a class": lambda: nn.Sequential(nn.Linear(6, 5), Doubling(5)),
    "forward of a layer": lambda: nn.Sequential(nn.Linear(6, 6), own_forward(layer("LIF", 6))[0]),
    "named input": lambda: nn.Sequential(Modulated(named=True)),
}


@pytest.mark.parametrize("name", PLACED)
def test_what_stands_around_a_layer_is_exact(name: str) -> None:
    shape = (STEPS, 2, 3, 6) if name == "places" else (STEPS, 4, 6)
    assert_exact(PLACED[name]().double(), sequence(*shape))


def backward_hook() -> nn.Module:
    tanh = nn.Tanh()
    tanh.register_full_backward_hook(lambda module, by_input, by_output: None)
    return nn.Sequential(nn.Linear(6, 6), tanh, snn.LIF(6))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(snn.LIF(6), nn.Linear(6, 6), snn.Readout(6, torch.rand(6))),
         "0 -> states of 2: what it does there later decays with the mean"),
        (nn.Sequential(nn.Linear(6, 6), snn.LIF(6), snn.LIF(6)),
         "1.raw_beta -> states of 2: no trace of"),
        (snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), "the outputs of the step before are const"),
        (snn.Delay(6, max_delay=3), "what it holds of earlier steps is constant, for it has no s"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), snn.LIF(6)), "0.weight -> states of 2"),
        (alone(lambda s, x: s.neuron(s.neuron(x))), "layer 'neuron', .* called twice in one step"),
        (Modulated(True, gradient=True), "a further input, modulator, with a gradient"),
        (alone(lambda s, x: (zero(s), s.neuron(x))[1]), CHANGED),
        (alone(lambda s, x: (s.neuron(x), zero(s))[0]), CHANGED),
        (alone(lambda s, x: s.neuron.forward_step(x)), CHANGED),
        (nn.Sequential(OwnStep(6)), "layer '0', .* has a forward_step of its own, and traces"),
        (own_forward(nn.Linear(6, 6)), "0.weight -> states of 1: no trace of earlier steps"),
        (backward_hook(), r"layer '1', Tanh\(\), has a backward hook"),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(model: nn.Module, message: str) -> None:
    assert_refused(model, message)


def test_learned_slope_of_a_surrogate_is_dropped() -> None:
    slope = Slope(tt.functional.atan_surrogate(2.0))
    net = nn.Sequential(nn.Linear(6, 5), snn.LIF(5, surrogate_derivative=slope))
    with pytest.raises(ValueError, match="pos_spike -> states of 1: a param"):
        tt.online(net)(torch.ones(2, 6))


def between(*modules: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), *modules, snn.LIF(5), nn.Linear(5, 2))


class Centred(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.9 * mem + x - x.mean(0)
        return mem, mem


LATE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a silent first step": (
        lambda: between(nn.ReLU(), nn.LayerNorm(5, elementwise_affine=False)),
        torch.zeros(3, 6),
    ),
    "another mode": (lambda: between(nn.BatchNorm1d(5, affine=False).eval()), torch.rand(3, 6)),
    "a larger batch": (lambda: between(Says(lambda x: x - x.mean(0))), torch.rand(1, 6)),
    "a larger batch, in a step": (lambda: Centred(6), torch.rand(1, 6)),
}


@pytest.mark.parametrize("behind", LATE)
def test_what_mixes_neurons_or_samples_is_found_behind(behind: str) -> None:
    build, first = LATE[behind]
    learner = tt.online(build())
    learner(first)
    if behind != "a silent first step":
        learner.zero_states()
    learner.train()
    with pytest.raises(ValueError, match=r"mixes neurons or samples|0.weight -> states of [23]"):
        learner(torch.rand(3, 6))


def test_hook_on_all_modules_is_refused() -> None:
    learner = tt.online(between())
    handle = register_module_forward_hook(lambda module, args, y: None)
    with handle, pytest.raises(ValueError, match="a hook is registered on all modules"):
        learner(torch.rand(2, 6))
    learner(torch.rand(2, 6))


@pytest.mark.parametrize(
    "names",
    [("0.weight", "0.bias"), ("1.raw_beta",), ("1.raw_pos_threshold",), ("0.bias",), ("2.weight",)],
    ids=", ".join,
)
@pytest.mark.parametrize("copied", [False, True])
def test_frozen_steps_are_left_out_as_by_backpropagation(names, copied):
    net, x = network(layer("SLIF", 5)), sequence(9, 4, 6)
    gradients = []
    for online in (False, True):
        tt.zero_states(net)
        each: Any = tt.online(net) if online else net
        losses: list[Tensor] = []
        for t, step in enumerate(x):
            if copied and online and t == 4:
                each = copy.deepcopy(each)
                losses.clear()
            for name in names:
                model: nn.Module = each.model if online else net
                model.get_parameter(name).requires_grad_(not 2 <= t < 5)
            losses.append(weighted_sum(each(step)))
        torch.stack(losses[-3:]).sum().backward()
        gradients.append(named_gradients(model))
    assert_same(gradients[1], gradients[0])


FROZEN = {
    **{name: (name,) for name in ("0.weight", "0.bias", "1.raw_beta")},
    **{name: (name,) for name in ("2.weight", "2.bias", "3.raw_beta")},
    **{f"{layer}.weight and bias": (f"{layer}.weight", f"{layer}.bias") for layer in "02"},
}
WHEN = {"at first": range(3), "in between": range(3, 6), "at the end": range(6, 9)}


def switched(net: nn.Sequential, frozen: Any, t: int) -> None:
    for name, steps in frozen.items():
        net.get_parameter(name).requires_grad_(t not in steps)


def ottt_output(net: nn.Sequential, x: Tensor, frozen: Any, last: int) -> Tensor:
    """Return the output of a step whose graph is that of OTTT: layers are tied in it alone."""
    tt.zero_states(net)
    for t in range(last + 1):
        switched(net, frozen, t)
        spikes = net[:2](x[t])
        y: Tensor = net[2:](spikes if t == last else spikes.detach())
    return y


@pytest.mark.parametrize("rule", ["exact", "eprop", "ottt"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("names", FROZEN)
def test_every_parameter_may_be_frozen_for_some_steps(names: str, when: str, rule: Any) -> None:
    # of neurons that decay alike, and no derivative of a reset: eprop drops nothing, and ottt what
    # goes from layer to layer in earlier steps
    setup: Any = {"beta_setup": {"rank": 0}, "pos_threshold_setup": {"learnable": False}}
    neuron = snn.LeakyIntegrator(5, **setup, detach_reset=True)
    net = network(neuron, nn.Linear(5, 5), snn.Readout(5, beta_rank=0))
    x, frozen = sequence(9, 4, 6), dict.fromkeys(FROZEN[names], WHEN[when])
    net(x[0])
    tt.zero_states(net)
    learner = tt.online(net, rule)
    gradients = []
    for online in (False, True):
        tt.zero_states(learner)
        for t, step in enumerate(x):
            if rule == "ottt" and not online:
                y = ottt_output(net, x, frozen, t)
            else:
                switched(net, frozen, t)
                y = learner(step) if online else net(step)
            ((t + 1) * weighted_sum(y)).backward(retain_graph=True)
        net.requires_grad_()
        gradients.append(named_gradients(net))
    assert_same(gradients[1], gradients[0])


class Watched(nn.Module):
    """A neuron layer that is fed, and forgets, where gradients are disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.monitor = nn.Sequential(nn.Linear(6, 5), layer("LIF", 5)), snn.Readout(5)
        self.quiet = False

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.quiet):
            y = self.net(x)
        with torch.no_grad():
            self.monitor(y[:])
        return y + self.net[0](x)


def test_layer_where_gradients_are_disabled_has_constant_states() -> None:
    model, x = Watched().double(), sequence(12, 4, 6)
    grads = []
    learner = tt.online(model)
    for each in (model, learner):
        tt.zero_states(model)
        losses = []
        for t, step in enumerate(x):
            model.quiet = 4 <= t < 6
            losses.append(each(step).square().sum())
        torch.stack(losses).sum().backward()
        grads.append(named_gradients(model))
    assert_same(grads[1], grads[0])
    assert learner.dropped == ()
