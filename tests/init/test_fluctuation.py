"""Test the initialisation without data: simulated membranes have the target's moments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, Net, few, layer
from tests.refusals import check, refusals, unchanged
from tracetorch import neurons, snn
from tracetorch.init import fluctuation_, impulse_response
from tracetorch.snn.neuron import spike_functions

RATE = 0.1
PAIR = (nn.Linear(3, 3), snn.LIF(3))
T, B, INPUTS, N = 400, 32, 60, 8


def events(*sample: int, steps: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(steps, B, *sample, generator=generator) < RATE).double()


def free_membranes(module: snn.Neuron, drive: Tensor) -> Tensor:
    """Membranes of a layer whose spike functions give 0, step by step, in distances."""
    names = spike_functions(module)
    received: list[Tensor] = []
    kwargs: dict[str, Any] = module.step_kwargs(drive.ndim - 1, drive.dtype)

    def silent(u: Tensor) -> Tensor:
        received.append(u)  # several times where a spike has levels; the first is the lowest
        return torch.zeros_like(u)

    kwargs |= dict.fromkeys(names, silent)
    module.zero_states()
    states = module._states_for(drive[0], drive.dtype)
    seen = []
    for x in drive:
        received.clear()
        output, *states = module.step(x, *states, **kwargs)
        seen.append(received[0] if names else output)
    distance = impulse_response(module).distance
    above = torch.stack(seen).movedim(module.dim, -1)
    return (above + distance if names else above) / distance


def quiet(name: str, num_neurons: int) -> Any:
    """Build a layer with random parameters and without a bias, which would move its rest."""
    made = layer(name, num_neurons)
    if getattr(made, "bias", None) is not None:
        nn.init.zeros_(made.raw_bias)
    return made


def moments(membranes: Tensor, skip: int = 200) -> tuple[Tensor, Tensor]:
    flat = membranes[skip:].flatten(0, -2)
    return flat.mean(0), flat.std(0)


# A response that never ends has no integral; and these are linear near their rest alone, far below
# the voltage at which a spike is cut off.
ENDLESS = ("SigmaDelta", "TCLIF")
VOLTAGES = ("AdEx", "EIF", "Izhikevich", "QIF")
LINEAR = (*LAYERS, *(name for name in NEURONS if name not in (*ENDLESS, *VOLTAGES)))
FAST = ("LIF", "RLIF", "SLIF", "ALIF", "BRF", "AdEx")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", few((*LINEAR, *VOLTAGES), *FAST))
def test_membranes_have_the_target_of_mean_and_deviation(name: str) -> None:
    targets = [(0.005, 0.0)] if name in VOLTAGES else [(0.5, 0.0), (0.3, 0.4)]
    for target, mean in targets if name not in NEURONS else targets[:1]:
        torch.manual_seed(0)
        made = getattr(neurons, name)(N) if name in VOLTAGES else quiet(name, N)
        net: Any = nn.Sequential(nn.Linear(INPUTS, N), made).double()
        fluctuation_(net, rate=RATE, target=target, mean=mean)
        with torch.no_grad():
            means, deviations = moments(free_membranes(net[1], net[0](events(INPUTS))))
        # of each neuron by itself, from correlated steps of few samples, twice; 5 % of all of them
        assert (means - mean).abs().max() < 0.2 * target
        assert abs(float(means.mean()) - mean) < 0.05 * target
        assert (deviations / target - 1).abs().max() < 0.15
        assert abs(float(deviations.square().mean().sqrt()) / target - 1) < 0.05


def after(net: Any, x: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """Moments of the free membranes of the last layer, whose input the others make."""
    with torch.no_grad():
        drive = tt.unroll(net[:-1], x, from_rest=True)
        return moments(free_membranes(net[-1], drive), skip)


@pytest.mark.slow
def test_convolutions_drive_channels_and_norms_take_the_part_of_weights() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(4, N, 3), snn.LIF(N, dim=-3)).double()
    fluctuation_(net, rate=RATE)
    _, deviations = after(net, events(4, 5, 5, steps=300), 100)
    assert (deviations / 0.5 - 1).abs().max() < 0.1
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(INPUTS, N), nn.BatchNorm1d(N), snn.LIF(N)).double()
    before = net[0].weight.clone()
    fluctuation_(net, rate=RATE, mean=0.2)
    assert torch.equal(net[0].weight, before)
    means, deviations = after(net, events(INPUTS), 200)
    assert (means - 0.2).abs().max() < 0.05
    assert (deviations / 0.5 - 1).abs().max() < 0.1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("sigma", [3.0, 0.0])
@pytest.mark.parametrize("mean", [0.2, 0.0])
@pytest.mark.parametrize("kind", ["linear", "axonal", "norm"])
def test_delays_between_steps_are_part_of_the_kernel(kind: str, mean: float, sigma: float) -> None:
    torch.manual_seed(0)
    options: Any = {"max_delay": 25, "sigma": sigma}
    parts: dict[str, Any] = {
        "linear": [snn.DelayedLinear(INPUTS, N, **options)],
        "axonal": [nn.Linear(INPUTS, N), snn.Delay(N, **options)],
        "norm": [nn.Linear(INPUTS, N), nn.BatchNorm1d(N), snn.Delay(N, **options)],
    }
    net: Any = nn.Sequential(*parts[kind], snn.LIF(N, beta=0.5)).double()
    fluctuation_(net, rate=RATE, mean=mean)
    means, deviations = after(net, events(INPUTS), 50)
    assert (means - mean).abs().max() < 0.15 * 0.5
    assert (deviations / 0.5 - 1).abs().max() < 0.15
    assert abs(float(deviations.square().mean().sqrt()) / 0.5 - 1) < 0.05


@pytest.mark.parametrize(
    "parts",
    [
        [snn.Delay(3, max_delay=2, delay=0.5), *PAIR],
        [snn.DelayedLinear(3, 3, max_delay=2, sigma=1.0), nn.BatchNorm1d(3), snn.LIF(3)],
    ],
)
def test_delays_elsewhere_are_part_of_what_arrives(parts: list[Any]) -> None:
    net: Any = copy.deepcopy(nn.Sequential(*parts)).double()
    fluctuation_(net, rate=RATE)
    assert (after(net, events(3), 50)[1] / 0.5 - 1).abs().max() < 0.1


def test_recurrence_has_a_tenth_of_the_variance() -> None:
    torch.manual_seed(0)
    loop: Any = snn.Recurrent(snn.LIF(100), nn.Linear(100, 100))
    net: Any = nn.Sequential(nn.Linear(INPUTS, 100), loop).double()
    fluctuation_(net, rate=RATE)
    response = impulse_response(loop.neuron)
    x = events(INPUTS)
    with torch.no_grad():
        spikes = tt.unroll(net, x, from_rest=True)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        own = moments(free_membranes(loop.neuron, net[0](x)))[1]
        fed_back = moments(free_membranes(loop.neuron, loop.connection(before)))[1]
    assert float(own.square().mean()) == pytest.approx(0.225, rel=0.1)
    assert float(fed_back.square().mean()) == pytest.approx(0.025, rel=0.1)
    # the same by the sums of independent spikes
    closed = net[0].weight.detach().norm(dim=1) * response.deviation(RATE)
    assert float(closed.square().mean()) == pytest.approx(0.225, rel=0.1)


def test_rate_of_a_layer_is_that_of_its_spikes() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(INPUTS, 200), snn.LIF(200), nn.Linear(200, N), snn.LIF(N))
    net.double()
    fluctuation_(net, rate=RATE, target=0.6)
    _, deviations = after(net, events(INPUTS), 200)
    assert float(deviations.square().mean().sqrt()) == pytest.approx(0.6, rel=0.05)


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5)


def tied() -> nn.Sequential:
    net: Any = nn.Sequential(*PAIR, nn.Linear(3, 3), snn.LIF(3))
    net[2].weight = net[0].weight
    return net


def loop(connection: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), snn.Recurrent(snn.LIF(3), connection))


def before(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts, snn.LIF(3))


@refusals(
    r"""
    before(nn.Linear(3, 3)), rate="1" -> TypeError: rate
    before(nn.Linear(3, 3)), target=torch.inf -> ValueError: target must be positive and finite
    before(nn.Linear(3, 3)), mean=torch.nan -> ValueError: mean must be finite
    before(nn.Linear(3, 3, bias=False)), mean=0.2
        -> ValueError: '1' has no bias before it, for a mean of 0.2.* Give '0' a bias
    snn.LIF(3) -> ValueError: there is nothing to initialise
    before(nn.Linear(3, 6), nn.Flatten(), nn.Unflatten(1, (2, 3)))
        -> ValueError: '0', before '3', has 6 outputs for 3 neurons
    before(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
        -> ValueError: '0', before '1', is parametrized
    before(pruned()) -> ValueError: '0', before '1', is parametrized, pruned, or has a norm of torch
    loop(nn.utils.spectral_norm(nn.Linear(3, 3)))
        -> ValueError: the recurrent connection of '1.neuron' is parametrized, pruned
    loop(nn.Identity()) -> ValueError: the recurrent connection of '1.neuron' is Identity
    before(nn.Linear(3, 3)), shape=(4,) -> ValueError: does not run on one input of \[4\]
    before(nn.Linear(3, 3)), shape=3 -> TypeError: 'int' object is not iterable
    nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 3), snn.LIF(3))
        -> ValueError: does not run on the shapes that its layers show.*shape=
    tied() -> ValueError: '1' and '3' are driven by one parameter, of '0' and '2'
    """
)
def test_what_cannot_be_initialised_is_refused_and_unchanged(call: str, error: str) -> None:
    def run(model: nn.Module, **arguments: Any) -> None:
        with unchanged(model):
            fluctuation_(model, **arguments)

    check(f"run({call})", error, {**globals(), "run": run})


def grouped(shared: bool = False) -> Any:
    parts = {"f1": nn.Linear(3, 3), "f2": nn.Linear(3, 3), "a": snn.LIF(3), "b": snn.LIF(3)}
    parts["f2"] = parts["f1"] if shared else parts["f2"]
    return Net(lambda m, x: m.b(m.f2(m.a(m.f1(x)))), **parts)


def test_calls_decide_what_drives_neurons_and_a_generator_the_weights() -> None:
    torch.manual_seed(0)
    net: Any = grouped()
    fluctuation_(net, rate=0.3, target=0.9)
    found = net.f1.weight.double().norm(dim=1) * impulse_response(net.a).deviation(0.3)
    torch.testing.assert_close(found, torch.full((3,), 0.9).double(), atol=0, rtol=0.1)
    made = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(5, 3), snn.LIF(3))
        fluctuation_(net, generator=torch.Generator().manual_seed(3))
        made.append(net[0].weight.detach().clone())
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "parts",
    [
        [snn.LIF(3), nn.Linear(3, 3), nn.Linear(3, 3), snn.LIF(3), nn.Linear(3, 3)],
        [nn.Linear(3, 3), nn.BatchNorm1d(3), snn.LIF(3), snn.LIF(3), nn.Linear(3, 2)],
        [*PAIR, nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)],
    ],
)
def test_layers_that_rightly_have_no_partner(parts: list[nn.Module]) -> None:
    net = nn.Sequential(*parts)
    fluctuation_(net)
    assert tt.unroll(net, torch.ones(2, 2, 3)).shape[:2] == (2, 2)
