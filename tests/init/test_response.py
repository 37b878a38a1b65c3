"""Test the impulse response: against closed forms, and against steps of the layer itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import LAYERS, READOUTS, layer
from tests.init.test_fluctuation import quiet
from tests.refusals import check, refusals
from tracetorch import neurons, snn
from tracetorch.init import calibrate_, fluctuation_, identity_, impulse_response, tdbn_


def from_steps(module: snn.Neuron, length: int) -> Tensor:
    """The membrane after an impulse too small to make it spike, step by step in float64."""
    x = torch.zeros(length, 1, module.num_neurons, dtype=torch.float64)
    x[0] = 1e-3
    module.zero_states()
    seen = []
    for step in x:
        output = module(step)
        seen.append(output if type(module).__name__ in READOUTS else module.mem)
    return torch.stack(seen)[:, 0] / 1e-3


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", LAYERS)
def test_response_is_that_of_small_steps(name: str) -> None:
    module = quiet(name, 3)
    kernel, distance = impulse_response(module)
    torch.testing.assert_close(from_steps(module, len(kernel)), kernel, rtol=1e-5, atol=1e-7)
    expected = 1.0 if name in READOUTS else module.pos_threshold.double()
    torch.testing.assert_close(distance, torch.as_tensor(expected).expand(3).double())


@pytest.mark.parametrize("dim", [1, -3])
def test_any_place_of_the_neurons_gives_the_same(dim: int) -> None:
    beta = torch.tensor([0.3, 0.5, 0.9])
    expected = impulse_response(snn.SLIF(3, beta=beta)).kernel
    assert torch.equal(impulse_response(snn.SLIF(3, beta=beta, dim=dim)).kernel, expected)


def test_leaky_integrator_has_its_closed_form() -> None:
    response = impulse_response(snn.LIF(2, beta=torch.tensor([0.5, 0.9]), pos_threshold=2.0))
    steps = torch.arange(len(response.kernel), dtype=torch.float64)
    torch.testing.assert_close(response.kernel[:, 0], 0.5**steps)
    p = 0.1
    expected = torch.tensor([(p * (1 - p) / (1 - b * b)) ** 0.5 / 2 for b in (0.5, 0.9)])
    torch.testing.assert_close(response.deviation(p), expected.double(), rtol=1e-6, atol=0)
    expected = torch.tensor([p / (1 - b) / 2 for b in (0.5, 0.9)])
    torch.testing.assert_close(response.mean(p), expected.double(), rtol=1e-3, atol=0)


class Quadratic(snn.Neuron):
    """A nonlinear neuron, in millivolts: it rests at -65 and fires at -40."""

    states = ("shift",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.threshold("height", 25.0)

    @staticmethod
    def step(x: Any, shift: Any, *, height: Any, spike: Any) -> Any:
        shift = shift + 0.1 * (shift * (shift - 30) / 30) + x
        fired = spike(shift - height)
        return fired, shift * (1 - fired)


def test_nonlinear_neuron_is_taken_at_rest() -> None:
    kernel, distance = impulse_response(Quadratic(1))
    expected = 0.9 ** torch.arange(20.0).double()  # the slope at rest is -0.1
    torch.testing.assert_close(kernel[:20, 0], expected, rtol=0.02, atol=0)
    assert distance.item() == pytest.approx(25.0)


def biased(bias: float) -> snn.Neuron:
    values = {"beta_setup": 0.5, "pos_threshold_setup": 1.0, "bias_setup": bias}
    setups: dict[str, Any] = {name: {"value": value} for name, value in values.items()}
    return snn.LeakyIntegrator(1, **setups)


def test_bias_moves_the_rest_and_the_layer_is_left_as_it_is() -> None:
    assert impulse_response(biased(0.25)).distance.item() == pytest.approx(0.5)
    distance = impulse_response(neurons.MultiLevelLIF(2, pos_threshold=2.0)).distance
    torch.testing.assert_close(distance, torch.ones(2).double())
    module = layer("SRLIF", 3)
    module(torch.ones(2, 3))
    before = {name: getattr(module, name) for name in module.states}
    impulse_response(module)
    assert all(getattr(module, name) is state for name, state in before.items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


class Linear(snn.Neuron):
    """A membrane that adds its input times a factor, and forgets nothing."""

    states = ("mem",)

    def __init__(self, num_neurons: int, factor: int) -> None:
        super().__init__(num_neurons)
        self.option("factor", factor)

    @staticmethod
    def step(x: Any, mem: Any, *, factor: Any) -> Any:
        return factor * (mem + x), factor * (mem + x)


@refusals(
    r"""
    nn.Linear(2, 2) -> TypeError: layer must be a neuron layer with a step, got Linear
    snn.Recurrent(snn.LIF(2), nn.Linear(2, 2))
        -> TypeError: layer must be a neuron layer with a step, got Recurrent
    snn.Delay(2, max_delay=2) -> TypeError: must be a neuron layer with a step, got Delay
    Linear(2, 0) -> ValueError: does not respond to a small input
    Linear(1, 1) -> ValueError: after 64 steps: .* Give it a leak: it has no decay; behind a norm
    biased(0.75) -> ValueError: fires without input
    """
)
def test_what_has_no_response_is_refused(call: str, error: str) -> None:
    check(f"impulse_response({call})", error, globals())


class Noisy(snn.Neuron):
    """A leaky integrator with noise: added to its membrane, or against a probability to fire."""

    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self, num_neurons: int, distribution: Any, height: float = 1.0) -> None:
        super().__init__(num_neurons)
        self.noise = snn.Noise(num_neurons, distribution=distribution)
        self.decay("beta", 0.9)
        self.threshold("pos_threshold", 1.0)
        self.option("escapes", distribution == "uniform")
        self.option("height", height)

    @staticmethod
    def step(x, noise, mem, *, beta, pos_threshold, escapes, height, spike) -> Any:
        mem = beta * mem + x
        u = mem - pos_threshold
        chance = height * torch.sigmoid(10 * u)
        fired = spike(chance - noise if escapes else u + 0.1 * noise)
        return fired, mem - fired * pos_threshold


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_noise_of_its_own_has_its_mean(distribution: Any) -> None:
    noisy, plain = impulse_response(Noisy(2, distribution)), impulse_response(snn.LIF(2, beta=0.9))
    found = noisy.kernel / noisy.distance
    size = min(len(found), len(plain.kernel))
    torch.testing.assert_close(found[:size], plain.kernel[:size], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_every_initialisation_takes_noise(distribution: Any) -> None:
    torch.manual_seed(0)
    x = (torch.rand(40, 16, 20) < 0.1).float()
    neuron = Noisy(6, distribution)
    net: Any = nn.Sequential(nn.Linear(20, 6), neuron)
    before = torch.get_rng_state()
    fluctuation_(net, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.full((6,), 0.5 / (0.09 / (1 - 0.81)) ** 0.5)
    torch.testing.assert_close(net[0].weight.norm(dim=1), expected, rtol=5e-2, atol=0)
    calibrate_(net, x)
    mem = torch.zeros(41, 16, 6)
    for t, step in enumerate(net[0](x).detach()):
        mem[t + 1] = 0.9 * mem[t] + step
    deviation = mem[1:].flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(deviation, torch.full((6,), 0.5), rtol=0.02, atol=0)
    assert tdbn_(nn.Sequential(nn.BatchNorm1d(6), neuron), torch.rand(3, 4, 6)) == {"0": "1"}
    identity_(snn.SEWBlock(nn.Sequential(nn.Linear(6, 6), neuron)))


def test_noise_that_the_membrane_never_passes_at_its_mean_is_refused_in_one_line() -> None:
    message = r"layer '1', Noisy.*'uniform'.*\), comes to its threshold from no impulse"
    net = nn.Sequential(nn.Linear(3, 2), Noisy(2, "uniform", height=0.3))
    with pytest.raises(ValueError, match=message) as caught:
        fluctuation_(net)
    assert "\n" not in str(caught.value)
