"""Test one step: what stands around a layer, and what no trace follows, as what mixes lanes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import Slope, layer, module, sequence, weighted_sum
from tests.networks import Doubled
from tests.online_learning.cases import (
    STEPS,
    assert_exact,
    assert_same,
    named_gradients,
    network,
)
from tests.unrolling.memories import Says
from tracetorch import snn


def parallel() -> Any:
    """Two neuron layers beside each other, one of which gets the sum of two products."""

    def forward(m: Any, x: Tensor) -> Any:
        drive = torch.tanh(m.first(x)) * 2 + m.second(x)
        return m.left(drive) * m.right(m.third(x).relu_())

    products: Any = {name: nn.Linear(6, 5) for name in ("first", "second", "third")}
    return module(forward, **products, left=layer("SLIF", 5), right=layer("RLIF", 5))


def fed(forward: Any) -> Any:
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


def modulated(named: bool, gradient: bool = False) -> Any:

    def forward(m: Any, x: Tensor) -> Any:
        modulator = m.gate * x.detach().mean(-1, keepdim=True).abs()
        y = m.product(x)
        return m.neuron(y, modulator=modulator) if named else m.neuron(y, modulator)

    gate = nn.Parameter(torch.ones(()), requires_grad=gradient)
    return module(forward, product=nn.Linear(6, 5), neuron=Inner(5), gate=gate)


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
    "parallel": parallel,
    "tied": tied,
    "noise": lambda: nn.Sequential(
        fed(lambda s, x: s.neuron(s.product(x) + 0.3 * s.noise(x[..., :5])))
    ),
    "noise inside": lambda: nn.Sequential(modulated(named=False)),
    "hooks": hooked,
    "forward called": lambda: fed(lambda s, x: s.neuron.forward(s.product(x))),
    "forward of a class": lambda: nn.Sequential(nn.Linear(6, 5), Doubled(5)),
    "forward of a layer": lambda: nn.Sequential(nn.Linear(6, 6), own_forward(layer("LIF", 6))[0]),
    "named input": lambda: nn.Sequential(modulated(named=True)),
}


@pytest.mark.parametrize("name", PLACED)
def test_what_stands_around_a_layer_is_exact(name: str) -> None:
    shape = (STEPS, 2, 3, 6) if name == "places" else (STEPS, 4, 6)
    assert_exact(PLACED[name]().double(), sequence(*shape))


class Drawing(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + x + torch.rand_like(x)
        return mem, mem


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), layer("LIF", 6))
    prune.random_unstructured(net[0], "weight", 0.3)
    return net


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
        (modulated(True, gradient=True), "a further input, modulator, with a gradient"),
        (alone(lambda s, x: (zero(s), s.neuron(x))[1]), CHANGED),
        (alone(lambda s, x: (s.neuron(x), zero(s))[0]), CHANGED),
        (alone(lambda s, x: s.neuron.forward_step(x)), CHANGED),
        (nn.Sequential(OwnStep(6)), "layer '0', .* has a forward_step of its own, and traces"),
        (own_forward(nn.Linear(6, 6)), "0.weight -> states of 1: no trace of earlier steps"),
        (backward_hook(), r"layer '1', Tanh\(\), has a backward hook"),
        (snn.LIF(6, surrogate_derivative=Slope()), "pos_spike -> states of : a parameter of a spi"),
        (Drawing(6), "has other states than its step computes from the same input"),
        (pruned(), "0.weight_orig -> states of 1: no trace of earlier"),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(model: nn.Module, message: str) -> None:
    learner, x = tt.online(model), torch.ones(2, 6)
    with pytest.raises(ValueError, match=message):  # noqa: PT012 (in the second step at the latest)
        for _ in range(2):
            before = tt.get_states(model)
            learner(x)
    torch.testing.assert_close(tt.get_states(model), before, rtol=0, atol=0)


MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "neurons swapped": lambda x: x.flip(-1),
    "neurons summed": lambda x: x + 0.3 * x.roll(1, -1),
    "neurons subtracted": lambda x: x - x.mean(-1, keepdim=True),
    "samples swapped": lambda x: x.flip(0),
    "samples summed": lambda x: x + x.roll(1, 0),
    "samples subtracted": lambda x: x - x.mean(0),
    "one lane into another": lambda x: torch.cat(
        [x.flatten()[:1] + 1e-3 * x.flatten()[-1], x.flatten()[1:]]
    ).view_as(x),
}


def mixing_neuron(mixed: Callable[[Tensor], Tensor], place: str) -> type[snn.Neuron]:
    class Mixing(snn.Neuron):
        states = ("mem", "adaptation")

        @staticmethod
        def step(x: Tensor, mem: Tensor, adaptation: Tensor) -> Any:
            x, adaptation = (mixed(x), adaptation) if place == "input" else (x, mixed(adaptation))
            # one next state alone is mixed, so that nothing else gives it away
            return x, 0.9 * mem + x.detach(), 0.5 * adaptation

    return Mixing


@pytest.mark.parametrize("place", ["input", "state", "before"])  # of the mixture
@pytest.mark.parametrize("name", MIXTURES)
def test_lanes_that_are_mixed_are_found(name: str, place: str) -> None:
    for samples, count in itertools.product((1, 2), (1, 2, 3, 4)):
        if (samples if "samples" in name else count) == 1:
            continue  # alone, one is mixed with nothing
        neurons: list[nn.Module] = [Says(MIXTURES[name]), snn.LIF(count)]
        if place != "before":
            neurons = [mixing_neuron(MIXTURES[name], place)(count)]
        with pytest.raises(ValueError, match=r"mixes neurons or samples|0.weight -> states"):
            tt.online(nn.Sequential(nn.Linear(6, count), *neurons))(torch.rand(samples, 6))


def test_every_pair_of_neurons_that_is_swapped_is_found() -> None:
    order = torch.arange(32)
    net = nn.Sequential(nn.Linear(6, 32), Says(lambda x: x[:, order]), snn.LIF(32))
    numbers = torch.randperm(32, generator=torch.Generator().manual_seed(0)) % 16
    for i, j in itertools.combinations(range(32), 2):
        if numbers[i] == numbers[j]:  # which one probe of 16 values cannot tell apart
            order.copy_(torch.arange(32))
            order[[i, j]] = order[[j, i]]
            with pytest.raises(ValueError, match=r"0.weight -> states of 2: no trace"):
                tt.online(net)(torch.rand(1, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_pointwise_in_half_precision_is_not_refused(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.SiLU(), nn.Tanh(), snn.LIF(40)).to(dtype)
    learner = tt.online(net)
    for step in torch.rand(3, 4, 6, dtype=dtype):
        learner(step).sum().backward()


@pytest.mark.parametrize(
    "options", [{}, {"bias": False, "stride": 2}, {"dilation": 2, "padding": "valid"}]
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


def between(*modules: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), *modules, snn.LIF(5), nn.Linear(5, 2))


class Centred(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.9 * mem + x - x.mean(0)
        return mem, mem


NORM = nn.LayerNorm(5, elementwise_affine=False)
LATE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a silent first step": (lambda: between(nn.ReLU(), NORM), torch.zeros(3, 6)),
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


@pytest.mark.one_in(2)
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


def test_layer_where_gradients_are_disabled_has_constant_states() -> None:
    """Also one that is fed there alone, as a monitor is."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not m.quiet):
            y = m.net(x)
        with torch.no_grad():
            m.monitor(y[:])
        result: Tensor = y + m.net[0](x)
        return result

    net = nn.Sequential(nn.Linear(6, 5), layer("LIF", 5))
    model, x = module(forward, net=net, monitor=snn.Readout(5)).double(), sequence(12, 4, 6)
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
