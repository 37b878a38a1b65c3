"""Test the initialisation on a batch: layer by layer, whatever stands before the neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, Net, few
from tests.init.test_fluctuation import FAST, LINEAR, free_membranes, grouped, quiet
from tests.refusals import check, refusals, unchanged
from tracetorch import snn
from tracetorch.init import Membranes, calibrate_

T, B = 60, 16


def batch(*sample: int, rate: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(T, B, *sample, generator=generator) < rate).float()


@pytest.mark.parametrize("name", few(LINEAR, *FAST))
def test_membranes_have_the_target_on_the_batch(name: str) -> None:
    mean = 0.2 if name in LAYERS else 0.0
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(20, 12), quiet(name, 12), nn.Linear(12, 6), quiet(name, 6))
    x = batch(20)
    reached = calibrate_(net, x, target=0.4, mean=mean)
    assert list(reached) == ["1", "3"]
    for path, membranes in reached.items():
        assert membranes.deviation == pytest.approx(0.4, rel=0.02)
        assert membranes.mean == pytest.approx(mean, abs=0.02)
        neuron = net[int(path)]
        _, seen = tt.unroll(net, x, record=f"{path}.input", from_rest=True)
        with torch.no_grad():
            free = free_membranes(neuron, seen[f"{path}.input"].double())
        deviation = free.flatten(0, 1).std(0, correction=0).square().mean().sqrt()
        assert float(deviation) == pytest.approx(0.4, rel=0.05)
        assert float(free.mean()) == pytest.approx(mean, abs=0.02)


def residual() -> nn.Module:
    parts: Any = {"conv": nn.Conv2d(3, 3, 3, padding=1), "lif": snn.LIF(3, dim=-3)}
    return Net(lambda m, x: x + m.lif(m.conv(x)), **parts)


NETWORKS: dict[str, Any] = {
    "convolutions": lambda: [
        nn.Conv2d(2, 3, 3, padding=1), snn.LIF(3, dim=-3), nn.MaxPool2d(2), residual(),
        nn.Flatten(), nn.Linear(27, 5), snn.Readout(5)],
    "batch norm": lambda: [
        nn.Linear(9, 5), nn.BatchNorm1d(5), snn.SLIF(5), nn.Linear(5, 4), snn.LIF(4)],
    "delays": lambda: [
        snn.DelayedLinear(9, 6, max_delay=4, sigma=1.0), snn.Delay(6, max_delay=3),
        snn.Recurrent(snn.LIF(6), snn.DelayedLinear(6, 6, max_delay=2)), nn.Linear(6, 3)],
    "delays along places": lambda: [
        snn.Delay(3, dim=-2, max_delay=4, sigma=1.0), nn.Conv1d(3, 6, 3, padding=1),
        snn.Recurrent(snn.LIF(6, dim=-2), nn.Conv1d(6, 6, 1)), nn.Flatten(), nn.Linear(18, 3)],
    "no bias": lambda: [nn.Linear(9, 6, bias=False), snn.LIF(6)],
}  # fmt: skip
SAMPLES = {"convolutions": (2, 6, 6), "delays along places": (3, 3)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [pytest.param(True, marks=pytest.mark.slow), False])
def test_any_network_reaches_the_target(name: str, training: bool) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*NETWORKS[name]()), batch(*SAMPLES.get(name, (9,)))
    net.train(training)
    tt.unroll(net, x[:5])
    kept = [each.clone() for each in (*net.buffers(), *tt.get_states(net).values())]
    reached = calibrate_(net, x)
    assert all(each.deviation == pytest.approx(0.5, rel=0.02) for each in reached.values())
    assert all(map(torch.equal, kept, [*net.buffers(), *tt.get_states(net).values()]))


def one(bias: bool = True) -> Any:
    return nn.Sequential(nn.Linear(9, 6, bias=bias), snn.LIF(6))


def test_static_input_and_a_neuron_without_input_is_scaled_as_its_layer() -> None:
    static = calibrate_(one(), torch.rand(8, 9), steps=10)["1"]
    assert static.deviation == pytest.approx(0.5, rel=0.02)
    torch.manual_seed(0)
    net = one()
    with torch.no_grad():
        net[0].weight[2] = 0
        before = net[0].weight.clone()
    assert isinstance(calibrate_(net, batch(9))["1"], Membranes)
    assert not net[0].weight[2].any()
    assert torch.isfinite(net[0].weight).all()
    assert not torch.equal(net[0].weight, before)


@refusals(
    r"""
    torch.zeros(5, 2, 9) -> ValueError: '1' gets the same input at every step
    batch(9).fill_(torch.inf) -> ValueError: '1' gets an input on this batch that is not fi
    batch(9), target=torch.inf -> ValueError: target must be positive and finite, got inf
    batch(9), mean=None -> TypeError: mean
    5 -> TypeError: x must be a tensor
    torch.rand(5, 0, 9) -> ValueError: x has no sample: its batch is 0
    torch.rand(1, 9), steps=10 -> ValueError: '1' gets the same input .* its samples do not differ
    """
)
def test_errors_change_nothing(call: str, error: str) -> None:
    net = one(bias="steps" in call)
    with unchanged(net):
        check(f"calibrate_(net, {call})", error, {"net": net, **globals()})


def branches(shared: bool = False) -> nn.Module:
    parts = {"first": nn.Linear(3, 3), "second": nn.Linear(3, 3), "a": snn.LIF(3), "b": snn.LIF(3)}

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        z = y if shared else m.second(x)
        return m.a(y) + m.b(z)

    return Net(forward, **parts)


def silenced() -> nn.Sequential:
    net: Any = nn.Sequential(nn.Linear(3, 3), snn.LIF(3))
    nn.init.zeros_(net[0].weight)
    return net


@refusals(
    r"""
    grouped(shared=True) -> ValueError: 'f1' drives 'a', 'b': one scale cannot fit
    branches(shared=True) -> ValueError: 'first' drives 'a', 'b': one scale cannot fit
    silenced() -> ValueError: the weight of '0', before '1', is 0, as after identity_
    nn.Sequential(nn.Linear(3, 3), Net(lambda m, x: x / x.std()), snn.LIF(3))
        -> ValueError: '2' does not reach a deviation of 0\.5 and a mean of 0\.0 by a scale
    """
)
def test_what_has_no_scale_of_its_own_is_refused(call: str, error: str) -> None:
    net = eval(call)
    with unchanged(net):
        check("calibrate_(net, batch(3))", error, {**globals(), "net": net})


@pytest.mark.parametrize("kind", [grouped, branches])
def test_the_calls_decide_what_drives_neurons(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind()
    reached = calibrate_(net, batch(3, rate=0.5))
    assert set(reached) == {"a", "b"}
    assert calibrate_(net, batch(3, rate=0.5)).keys() == reached.keys()


def test_states_autocast_and_frozen_layers() -> None:
    net: Any = one().requires_grad_(False)
    weight = net[0].weight.clone()
    net(torch.ones(3, 9))
    membranes = net[1].mem
    calibrate_(net, batch(9))
    assert net[1].mem is membranes
    assert not torch.equal(net[0].weight, weight)
    assert not net[0].weight.requires_grad
    x, weights = batch(9), []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(9, 6), snn.LIF(6), nn.Linear(6, 2), snn.Readout(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            calibrate_(net, x)
        weights.append([p.detach() for p in net.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize("empty", [nn.LazyLinear(6), nn.Linear(9, 6, device="meta")])
def test_weights_without_values_are_named(empty: nn.Module) -> None:
    net, x = nn.Sequential(empty, snn.LIF(6), nn.BatchNorm1d(6), snn.LIF(6)), batch(9)
    for use in (
        lambda: calibrate_(net, x),
        lambda: tt.init.tdbn_(net, x),
        lambda: tt.init.fluctuation_(net),
        lambda: tt.metrics.profile(net, x),
        lambda: tt.diagnose(net, (x,), lambda y: y.mean()),
        lambda: tt.online(net),
    ):
        with pytest.raises(ValueError, match=r"'0\.weight' has no values yet\. Run the model once"):
            use()


@pytest.mark.parametrize(
    ("beta", "x", "reason"),
    [
        (0.9, batch(9, rate=0.05), None),
        (0.9, 1 + 5e-3 * batch(9, rate=0.05), "is given hardly varies on this batch"),
        (0.999, batch(9, rate=0.05)[:20], "in 20 steps its neurons show 3.9 %"),
    ],
)
def test_large_weights_are_logged_with_the_reason(beta, x, reason, caplog) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 6), snn.Readout(6, beta=beta))
    calibrate_(net, x)
    assert ("made the weight of '0', before '1', " in caplog.text) == (reason is not None)
    assert (reason or "") in caplog.text
