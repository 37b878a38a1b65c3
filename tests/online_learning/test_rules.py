"""Test the rules as values, e-prop against formulas of papers, and what it takes for a reset."""

from collections.abc import Callable
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, layer, sequence, vary
from tests.online_learning.cases import (
    STEPS,
    assert_same,
    bptt_gradients,
    network,
    online_gradients,
    two_layers,
)
from tracetorch import neurons, snn
from tracetorch.online_learning import DroppedPath
from tracetorch.online_learning.rules import RULES, Rule

Array = NDArray[np.float64]

BATCH, INPUTS, NEURONS = 4, 6, 5


class Formula:
    """A neuron and its eligibility trace: one step of numbers, and of their derivatives.

    ``trace`` is the derivative of the output by the weights, ``[B, N, K]``, by the paper's rule.
    """

    def __init__(self, neuron: Any) -> None:
        values = {name: getattr(neuron, name) for name in neuron.constraints}
        self.p = {n: v.detach().numpy() for n, v in values.items()}
        self.zero = np.zeros((BATCH, NEURONS))
        self.no_trace = np.zeros((BATCH, NEURONS, INPUTS))

    def step(self, drive: Array, x: Array) -> tuple[Array, Array]:
        raise NotImplementedError


def psi(u: Array) -> Array:
    """Derivative of the surrogate, ``atan_surrogate(2.0)``."""
    return np.asarray(1 / (1 + (np.pi * u) ** 2))


class BellecLIF(Formula):
    """Equations (6), (7), (22), (23) of Bellec et al. 2020, with the reset before the decay."""

    def __init__(self, neuron: Any) -> None:
        super().__init__(neuron)
        self.v, self.z, self.eps_v = self.zero, self.zero, self.no_trace

    def step(self, drive: Array, x: Array) -> tuple[Array, Array]:
        alpha, threshold = self.p["beta"], self.p["pos_threshold"]
        self.v = alpha * (self.v - self.z * threshold) + drive
        self.eps_v = alpha[:, None] * self.eps_v + x[:, None]
        u = self.v - threshold
        self.z = (u > 0).astype(float)
        return self.z, psi(u)[..., None] * self.eps_v


class BellecALIF(BellecLIF):
    """Equations (8) to (10), (24), (25): the adaptive threshold."""

    def __init__(self, neuron: Any) -> None:
        super().__init__(neuron)
        self.a, self.eps_a, self.psi = self.zero, self.no_trace, self.zero

    def step(self, drive: Array, x: Array) -> tuple[Array, Array]:
        alpha, rho = self.p["beta"], self.p["rho"]
        threshold, beta = self.p["pos_threshold"], self.p["strength"]
        self.a = rho * self.a + self.z
        self.eps_a = (
            self.psi[..., None] * self.eps_v + (rho - self.psi * beta)[..., None] * self.eps_a
        )
        self.v = alpha * (self.v - self.z * threshold) + drive
        self.eps_v = alpha[:, None] * self.eps_v + x[:, None]
        u = self.v - threshold - beta * self.a
        self.z, self.psi = (u > 0).astype(float), psi(u)
        return self.z, self.psi[..., None] * (self.eps_v - beta[:, None] * self.eps_a)


class BaronigAdLIF(Formula):
    """The adLIF of Baronig et al. 2025; its trace by hand, with the spike of the reset constant."""

    symplectic = False

    def __init__(self, neuron: Any) -> None:
        super().__init__(neuron)
        self.u = self.w = self.s = self.zero  # u after the reset
        self.eps_u = self.eps_w = self.eps_s = self.no_trace

    def step(self, drive: Array, x: Array) -> tuple[Array, Array]:
        alpha, rho = self.p["beta"], self.p["rho"]
        a, b = 120 * self.p["a"], 120 * self.p["b"]
        u = alpha * self.u + (1 - alpha) * (drive - self.w)
        eps = alpha[:, None] * self.eps_u + (1 - alpha)[:, None] * (x[:, None] - self.eps_w)
        above = u - self.p["pos_threshold"]
        s, eps_s = (above > 0).astype(float), psi(above)[..., None] * eps
        reset, eps_reset = u * (1 - s), eps * (1 - s)[..., None]
        seen, eps_seen = (reset, eps_reset) if self.symplectic else (self.u, self.eps_u)
        fired, eps_fired = (s, eps_s) if self.symplectic else (self.s, self.eps_s)
        self.w = rho * self.w + (1 - rho) * (a * seen + b * fired)
        gain = (1 - rho)[:, None]
        self.eps_w = rho[:, None] * self.eps_w + gain * (
            a[:, None] * eps_seen + b[:, None] * eps_fired
        )
        self.u, self.eps_u, self.s, self.eps_s = reset, eps_reset, s, eps_s
        return s, eps_s


class BaronigSEAdLIF(BaronigAdLIF):
    symplectic = True


class BretteAdEx(Formula):
    """The AdEx of Brette and Gerstner 2005, by Euler's method; its trace by hand."""

    def __init__(self, neuron: Any) -> None:
        super().__init__(neuron)
        self.v = self.zero + self.p["v_rest"]
        self.w, self.eps_v, self.eps_w = self.zero, self.no_trace, self.no_trace

    def step(self, drive: Array, x: Array) -> tuple[Array, Array]:
        p = self.p
        growth = np.exp(np.minimum((self.v - p["v_t"]) / p["delta"], 10))
        slope = growth * ((self.v - p["v_t"]) / p["delta"] < 10)
        beta, rho = p["beta"], p["rho"]
        v = (
            p["v_rest"]
            + beta * (self.v - p["v_rest"])
            + (1 - beta) * (p["delta"] * growth - self.w + drive)
        )
        eps = (beta + (1 - beta) * slope)[..., None] * self.eps_v + (1 - beta)[:, None] * (
            x[:, None] - self.eps_w
        )
        above = v - p["v_peak"]
        z = (above > 0).astype(float)
        # the surrogate of neurons in millivolts, atan_surrogate(0.1)
        eps_z = (0.05 / (1 + (np.pi / 2 * 0.1 * above) ** 2))[..., None] * eps
        self.w = rho * self.w + (1 - rho) * p["a"] * (self.v - p["v_rest"]) + p["b"] * z
        self.eps_w = (
            rho[:, None] * self.eps_w
            + ((1 - rho) * p["a"])[:, None] * self.eps_v
            + p["b"][:, None] * eps_z
        )
        self.v, self.eps_v = v * (1 - z) + p["v_reset"] * z, eps * (1 - z)[..., None]
        return z, eps_z


class AsWritten(snn.Neuron):
    """The ALIF of Bellec et al. as the paper writes it: the spike is kept for the next step.

    Its reset may be ``detached`` by hand.
    """

    states = ("v", "a", "z")

    def __init__(self, num_neurons: int, detached: bool = False) -> None:
        super().__init__(num_neurons)
        self.option("detached", detached)
        self.decay("beta", 0.9)
        self.decay("rho", 0.95)
        self.threshold("pos_threshold", 1.0)
        self.weight("strength", 0.8)

    @staticmethod
    def step(x, v, a, z, *, beta, rho, pos_threshold, strength, spike, detached):
        v = beta * (v - (z.detach() if detached else z) * pos_threshold) + x
        a = rho * a + z
        z = spike(v - pos_threshold - strength * a)
        return z, v, a, z


FORMULAS: dict[str, tuple[Callable[[], snn.Neuron], type[Formula], float, set[str]]] = {
    "LIF": (lambda: snn.LIF(NEURONS, 0.95), BellecLIF, 1.0, {"mem"}),
    "ALIF": (lambda: neurons.ALIF(NEURONS), BellecALIF, 1.0, {"mem"}),
    "ALIF, strong": (lambda: neurons.ALIF(NEURONS, rho=0.95, strength=1.0), BellecALIF, 2.0,
     {"mem"}),
    "ALIF, as written": (lambda: AsWritten(NEURONS), BellecALIF, 2.0, {"v"}),
    "AdLIF": (lambda: neurons.AdLIF(NEURONS), BaronigAdLIF, 20.0, {"mem"}),
    "SEAdLIF": (lambda: neurons.SEAdLIF(NEURONS), BaronigSEAdLIF, 20.0, {"mem"}),
    "AdEx": (lambda: neurons.AdEx(NEURONS), BretteAdEx, 60.0, {"v"}),
}  # fmt: skip


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FORMULAS)
def test_eprop_follows_the_published_formula(name: str) -> None:
    build, kind, gain, reset = FORMULAS[name]
    torch.manual_seed(0)
    product = nn.Linear(INPUTS, NEURONS, bias=False)
    with torch.no_grad():
        product.weight.mul_(gain).add_(0.15 * gain)
    net = nn.Sequential(product, build()).double()
    x = sequence(60, BATCH, INPUTS).abs()
    signal = torch.randn(60, BATCH, NEURONS, dtype=torch.float64)
    y = tt.unroll(net, x, by="step", from_rest=True)
    assert 0.02 < float(y.detach().mean()) < 0.8
    (true,) = torch.autograd.grad((y * signal).sum(), product.weight)

    learner = tt.online(net, "eprop")
    for step, error in zip(x, signal, strict=True):
        (learner(step) * error).sum().backward()
    found = product.weight.grad
    assert found is not None

    formula = kind(net[1])
    expected = np.zeros((NEURONS, INPUTS))
    w = product.weight.detach().numpy()
    for t, step in enumerate(x.numpy()):
        z, trace = formula.step(step @ w.T, step)
        assert np.array_equal(z, y[t].detach().numpy())
        expected += np.einsum("bn,bnk->nk", signal[t].numpy(), trace)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert {each.reason.split()[3] for each in learner.dropped} == reset
    assert 0.3 < float(torch.cosine_similarity(found.flatten(), true.flatten(), dim=0)) < 0.9999


def test_eprop_of_recurrent_weights_follows_the_published_formula() -> None:
    """Equation (4) of Bellec et al. 2020: the spikes of the step before are an input as any."""
    torch.manual_seed(0)
    product = nn.Linear(INPUTS, NEURONS, bias=False)
    feedback = nn.Linear(NEURONS, NEURONS, bias=False)
    adaptive = neurons.ALIF(NEURONS, rho=0.97, strength=1.8)
    with torch.no_grad():
        product.weight.mul_(2).add_(0.2)
    net = nn.Sequential(product, snn.Recurrent(adaptive, feedback)).double()
    x = sequence(100, BATCH, INPUTS).abs()
    out, target = torch.randn(2, NEURONS).double(), torch.randn(100, BATCH, 2).double()

    def losses(y: Tensor, wanted: Tensor) -> Tensor:
        return ((y @ out.T - wanted) ** 2).sum() / 2  # a readout by MSE, its weights symmetric

    y = tt.unroll(net, x, by="step", from_rest=True)
    true = torch.autograd.grad(losses(y, target), (product.weight, feedback.weight))
    learner = tt.online(net, "eprop")
    for step, wanted in zip(x, target, strict=True):
        losses(learner(step), wanted).backward()
    assert product.weight.grad is not None
    assert feedback.weight.grad is not None
    found = torch.cat((product.weight.grad, feedback.weight.grad), 1)

    weights = np.concatenate([m.weight.detach().numpy() for m in (product, feedback)], 1)
    formula, expected = BellecALIF(adaptive), np.zeros((NEURONS, INPUTS + NEURONS))
    formula.no_trace = formula.eps_v = formula.eps_a = np.zeros((BATCH, *expected.shape))
    for t, step in enumerate(x.numpy()):
        inputs = np.concatenate((step, formula.z), 1)
        z, trace = formula.step(inputs @ weights.T, inputs)
        assert np.array_equal(z, y[t].detach().numpy())
        signal = (z @ out.numpy().T - target[t].numpy()) @ out.numpy()
        expected += np.einsum("bn,bnk->nk", signal, trace)
    assert 0.01 < float(y.detach().mean()) < 0.5
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    both = torch.cat(true, 1)
    assert float(torch.cosine_similarity(found.flatten(), both.flatten(), dim=0)) > 0.9


@pytest.mark.parametrize("deep", [False, True])
def test_a_reset_in_the_next_step_is_left_out_everywhere(deep: bool) -> None:
    behind = [nn.Linear(5, 5), snn.Readout(5, beta_rank=0)] if deep else []
    x = sequence(STEPS, 4, 6)
    expected = bptt_gradients(network(AsWritten(5, detached=True), *behind), x)
    assert_same(online_gradients(network(AsWritten(5), *behind), x, "eprop"), expected)
    with_reset = bptt_gradients(network(AsWritten(5), *behind), x)
    assert not torch.allclose(with_reset["0.weight"], expected["0.weight"], rtol=1e-2)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "Readout" not in name])
def test_eprop_is_backpropagation_with_the_reset_detached(name: str, reset: Any) -> None:
    x = sequence(STEPS, 4, 6)
    detached = network(layer(name, 5, reset=reset, detach_reset=True))
    expected = bptt_gradients(detached, x)
    # within a step, the reset of one spike function is seen by the other one in any rule
    as_is = detached if "B" in name else network(layer(name, 5, reset=reset))
    assert_same(online_gradients(as_is, x, "eprop"), expected)
    learner = tt.online(as_is, "eprop")
    learner(x[0])
    dropped = as_is is not detached and reset != "none"
    assert [str(each) for each in learner.dropped] == [
        "1 -> states of 1: the reset of mem by a spike is a constant"
    ] * dropped


def test_dropped_paths_are_named() -> None:
    x = sequence(4, 6)

    def origins(model: nn.Module, rule: Any) -> dict[str, set[str]]:
        learner = tt.online(model, rule)
        learner(x)
        found: dict[str, set[str]] = {}
        for each in learner.dropped:
            found.setdefault(each.layer, set()).add(each.origin)
        return found

    net = two_layers()
    assert origins(net, "eprop") == {"1": {"1"}}  # its own spikes
    vary(net)
    tt.zero_states(net)
    assert origins(net, "eprop") == {"1": {"1"}, "3": {"1"}}  # the readout's decays differ
    first = {"0.weight", "0.bias", "1.raw_beta", "1.raw_pos_threshold"}
    assert origins(two_layers(), "ottt") == {"1": {"0.weight", "1"}, "3": first | {"2.weight"}}
    learner = tt.online(two_layers(), "local")
    learner(x)
    assert set(learner.dropped) == {
        DroppedPath(path, path, "earlier steps are constants") for path in ("1", "3")
    }
    recurrent = network(snn.Recurrent(snn.LIF(5), nn.Linear(5, 5)))
    assert origins(recurrent, "eprop")["1"] == {"1"}
    deep = network(snn.LIF(5), nn.Linear(5, 5), snn.LIF(5), nn.Linear(5, 5), snn.Readout(5))
    assert origins(deep, "eprop") == {"1": {"1"}, "3": {"3"}, "5": first}


class Following(snn.Neuron):
    """An adaptation current that follows the membrane before its reset, and spikes."""

    states = ("mem", "w")
    reset_states: ClassVar[tuple[str, ...] | None] = None
    held: ClassVar[set[str]] = set()  # of these states the spike is detached by hand

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.option("spike", tt.functional.atan_surrogate(2.0))
        self.option("by_hand", sum(2**i for i, n in enumerate(self.states) if n in self.held))

    @staticmethod
    def step(x: Tensor, mem: Tensor, w: Tensor, *, spike: Any, by_hand: int) -> Any:
        mem = 0.9 * mem + x - w
        fired = spike(mem - 1)
        reset, adapting = (fired.detach() if by_hand & bit else fired for bit in (1, 2))
        return fired, mem - reset, 0.9 * w + 0.1 * mem + 0.2 * adapting


@pytest.mark.parametrize("declared", [None, ("mem",), ()])
def test_a_neuron_names_the_states_that_it_resets(declared: tuple[str, ...] | None) -> None:
    names = {"mem", "w"} if declared is None else set(declared)
    own = type("Named", (Following,), {"reset_states": declared})
    by_hand = type("ByHand", (Following,), {"held": names})
    x, net = sequence(STEPS, 4, 6), network(own(5))
    assert_same(online_gradients(net, x, "eprop"), bptt_gradients(network(by_hand(5)), x))
    learner = tt.online(net, "eprop")
    learner(x[0])
    assert {each.reason.split()[3] for each in learner.dropped} == names


@pytest.mark.parametrize("wrong", ["mem", ("mem", "v")])
def test_reset_states_that_are_no_states_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"Wrong.reset_states must be a tuple from"):
        type("Wrong", (Following,), {"reset_states": wrong})(5)


def test_every_name_has_a_rule_of_that_name() -> None:
    assert [rule.name for rule in RULES.values()] == list(RULES) == list(get_args(Rule))
