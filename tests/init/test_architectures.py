"""Test architectures with both initialisers: the target within a tenth, or refused by name.

Membranes are simulated apart: the model is stepped eagerly, and each neuron's input goes through
its ``step`` with silent spike functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import Net, few
from tests.init.test_fluctuation import free_membranes
from tests.refusals import unchanged
from tracetorch import snn
from tracetorch.init import calibrate_, fluctuation_, tdbn_

N, T, B, RATE = 24, 120, 16, 0.1


def attention() -> nn.Module:
    return Net(
        lambda m, x: m.lif(x + m.attention(x, x, x)[0]),
        attention=nn.MultiheadAttention(N, 2, batch_first=True),
        lif=snn.LIF(N),
    )


class ByHand(nn.Module):
    """Its output does not depend on the scale of what comes before."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-9).sqrt()


def linear() -> nn.Linear:
    return nn.Linear(N, N)


def behind(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(), snn.LIF(N), linear(), *between, snn.LIF(N))


def computed(function: Callable[[Any, Tensor], Tensor]) -> nn.Sequential:
    net = Net(lambda m, x: m.lif(function(m, x)), a=linear(), b=linear(), lif=snn.LIF(N))
    return nn.Sequential(linear(), snn.LIF(N), net)


def biasless(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.bias = None
    return net


def pooled(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), snn.LIF(4, dim=-3), *between,
        nn.Conv2d(4, 4, 3, padding=1), snn.LIF(4, dim=-3),
    )  # fmt: skip


def recurrent(depth: int, size: int = N) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(size, size), snn.Recurrent(snn.LIF(size), nn.Linear(size, size))]
    return nn.Sequential(*layers)


def normed() -> nn.Sequential:
    return behind().insert(1, snn.BatchNormThroughTime(N, steps=T))


def sharing(view: Callable[[Tensor], Tensor]) -> nn.Sequential:
    net: Any = behind()
    net[2].weight = nn.Parameter(view(net[0].weight.data))
    return net


HELD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (behind, (N,)),
    "constant factor": (lambda: computed(lambda m, x: 3 * m.a(x)), (N,)),
    "small factor": (lambda: computed(lambda m, x: 0.01 * m.a(x)), (N,)),
    "residual sum": (lambda: computed(lambda m, x: m.a(x) + 0.3 * x), (N,)),
    "two products": (lambda: computed(lambda m, x: m.a(x) + m.b(x)), (N,)),
    "product used twice": (lambda: computed(lambda m, x: m.a(x) + m.a(x.roll(1, -1))), (N,)),
    "small beside a shortcut": (lambda: computed(lambda m, x: 0.01 * m.a(x) + 1.5 * x), (N,)),
    "gate": (lambda: computed(lambda m, x: torch.sigmoid(m.a(x)) * m.b(x)), (N,)),
    "product of two": (lambda: computed(lambda m, x: m.a(x) * m.b(x)), (N,)),
    "chained with itself": (lambda: biasless(computed(lambda m, x: m.a(m.a(x)))), (N,)),
    "saturating": (lambda: computed(lambda m, x: torch.tanh(m.a(x))), (N,)),
    "large constant": (lambda: computed(lambda m, x: m.a(x) + 5), (N,)),
    "small constant, no bias": (lambda: biasless(computed(lambda m, x: m.a(x) + 0.02)), (N,)),
    "norm per step": (normed, (N,)),
    "average pooling": (lambda: pooled(nn.AvgPool2d(2)), (2, 8, 8)),
    "max pooling": (lambda: pooled(nn.MaxPool2d(2)), (2, 8, 8)),
    "recurrence": (lambda: recurrent(2), (N,)),
    "population in a loop": (lambda: nn.Sequential(snn.Recurrent(behind(), linear())), (N,)),
    "signed spikes": (lambda: nn.Sequential(
        linear(), snn.BLIF(N, pos_scale=2.0, neg_scale=2.0), *list(behind())[2:]), (N,)),
    "attention": (lambda: nn.Sequential(linear(), snn.LIF(N), attention()), (4, N)),
}  # fmt: skip
DOES_NOT, ONE = "'2.lif' does not reach ", "'1' and '3' are driven by one parameter"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (lambda: behind(nn.LayerNorm(N)), r"'4' does not .* 3 \(LayerNorm\)"),
    "relu": (lambda: behind(nn.ReLU()), r"'4' does not .* 3 \(ReLU\)"),
    "large shortcut": (lambda: computed(lambda m, x: m.a(x) + 10 * x),
     DOES_NOT + "a deviation .* past that, as by a shortcut"),
    "norm in forward": (lambda: behind(ByHand()),
     r"'4' does not .*div\(\) in the forward of 3 \(ByHand\)"),
    "constant, no bias": (lambda: biasless(computed(lambda m, x: m.a(x) + 0.7)),
     DOES_NOT + ".* '2.a': .* or a constant with no bias against it"),
    "storage": (lambda: sharing(lambda w: w), ONE),
    "transposed storage": (lambda: sharing(torch.t), ONE),
    "expanded": (lambda: sharing(lambda w: torch.randn(1, N).expand(N, N)),
     "'2', before '3', has a parameter whose values share memory"),
}  # fmt: skip
# the others are slow
FAST_HELD = ("constant factor", "recurrence")
FAST_REFUSED = ("layer norm", "storage", "expanded")


INITIALISERS = pytest.mark.parametrize("initialiser", ["calibrate_", "fluctuation_"])


def spikes(*sample: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(T, B, *sample, generator=generator) < RATE).float()


def start(initialiser: str, net: nn.Module, sample: tuple[int, ...]) -> None:
    if initialiser == "calibrate_":
        calibrate_(net, spikes(*sample, seed=1))
    else:
        fluctuation_(net, rate=RATE, shape=sample)


def deviations(net: nn.Module, x: Tensor, measured: slice | Tensor) -> dict[str, float]:
    """Simulate the eager model; return the deviation of each layer's free membranes."""
    neurons = {path: m for path, m in net.named_modules() if hasattr(m, "step")}
    inputs: dict[str, list[Tensor]] = {path: [] for path in neurons}
    handles = [
        m.register_forward_pre_hook(lambda _, args, path=path: inputs[path].append(args[0]))
        for path, m in neurons.items()
    ]
    with torch.no_grad(), tt.fuse.backend("eager"):
        tt.zero_states(net)
        tt.unroll(net, x, by="step")
        for handle in handles:
            handle.remove()
        found = {}
        for path, neuron in neurons.items():
            membranes = free_membranes(neuron, torch.stack(inputs[path]))[measured]
            flat = membranes.flatten(0, -2)
            found[path] = float(flat.std(0, correction=0).square().mean().sqrt())
        tt.zero_states(net)
    return found


@pytest.mark.one_in(2)
@INITIALISERS
@pytest.mark.parametrize("name", few(HELD, *FAST_HELD))
def test_target_is_held_within_a_tenth(name: str, initialiser: str) -> None:
    torch.manual_seed(0)
    build, sample = HELD[name]
    net = build()
    start(initialiser, net, sample)
    if initialiser == "calibrate_":
        found = deviations(net, spikes(*sample, seed=1), slice(None))
    else:
        found = deviations(net, spikes(*sample, seed=2), slice(T // 2, None))
    assert len(found) >= 2
    assert all(each == pytest.approx(0.5, rel=0.1) for each in found.values()), found


@INITIALISERS
@pytest.mark.parametrize("name", few(REFUSED, *FAST_REFUSED))
def test_what_loses_the_scale_is_refused_by_name(name: str, initialiser: str) -> None:
    torch.manual_seed(0)
    build, message = REFUSED[name]
    net = build()
    with unchanged(net), pytest.raises(ValueError, match=message):
        start(initialiser, net, (N,))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.01])
def test_recurrent_layer_with_rare_inputs(rate: float) -> None:
    torch.manual_seed(0)
    x = (torch.rand(60, 8, 100) < rate).float()
    net = recurrent(1, 100)
    reached = calibrate_(net, x)
    assert reached["1.neuron"].deviation == pytest.approx(0.5, rel=0.05)
    assert deviations(net, x, slice(None))["1.neuron"] == pytest.approx(0.5, rel=0.05)


def test_padding_counts_as_if_it_were_cut_out() -> None:
    x = spikes(N, seed=1)[:40]
    mask = torch.arange(40)[:, None] < torch.arange(25, 25 + B)
    junk = x.masked_fill(~mask[..., None], torch.nan)
    early = torch.cat([torch.full((3, B, N), torch.nan), junk])
    shifted = torch.cat([torch.zeros(3, B).bool(), mask])
    reached = []
    for sequence, real in ((x, mask), (junk, mask), (early, shifted)):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(N, N), snn.LIF(N))
        calibrate_(net, sequence, mask=real)
        reached.append(net[0].weight.detach().clone())  # type: ignore[operator]
    torch.testing.assert_close(reached[1:], [reached[0]] * 2)
    with pytest.raises(TypeError, match="mask must be a tensor of booleans"):
        calibrate_(net, x, mask=mask.float())
    net = nn.Sequential(nn.Unflatten(1, (2, N // 2)), nn.Flatten(0, 1), nn.Linear(N // 2, 3))
    with pytest.raises(ValueError, match="mask does not fit the steps and samples that '3' gets"):
        calibrate_(net.append(snn.LIF(3)), spikes(N, seed=1), mask=torch.ones(T, B).bool())


@pytest.mark.parametrize("name", few(["chain", "recurrence", "residual sum"], "chain"))
def test_real_steps_have_the_target(name: str) -> None:
    torch.manual_seed(0)
    net = HELD[name][0]()
    x = spikes(N, seed=1)[:50]
    mask = torch.arange(50)[:, None] < torch.arange(B) % 4 * 10 + 15
    x = x.masked_fill(~mask[..., None], 3.0)
    reached = calibrate_(net, x, mask=mask)
    assert all(each.deviation == pytest.approx(0.5, rel=0.05) for each in reached.values())
    found = deviations(net, x, mask)
    assert all(each == pytest.approx(0.5, rel=0.05) for each in found.values())
    padding = deviations(net, x, slice(None))
    assert not all(each == pytest.approx(0.5, rel=0.05) for each in padding.values())


@INITIALISERS
def test_generators_statistics_and_states_are_left_alone(initialiser: str) -> None:
    net: Any = nn.Sequential(
        nn.Linear(N, N), nn.BatchNorm1d(N), nn.Dropout(0.1), snn.LIF(N), nn.Linear(N, N), snn.LIF(N)
    )
    buffers = [b.clone() for b in net.buffers()]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    if initialiser == "calibrate_":
        calibrate_(net, spikes(N, seed=1))
    else:
        fluctuation_(net, generator=torch.Generator().manual_seed(0))
    tdbn_(net, spikes(N, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, buffers, net.buffers()))
    assert not tt.get_states(net)


@pytest.mark.slow
def test_spikes_too_rare_to_tell_are_logged_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 50), snn.LIF(50), nn.Linear(50, 50), snn.LIF(50))
    other = copy.deepcopy(net)
    fluctuation_(net, rate=0.02, target=0.22)
    assert "made the weight of '2', before '3'" in caplog.text
    with pytest.raises(ValueError, match=r"'3' gets the same input .* or a larger target"):
        fluctuation_(other, rate=0.02, target=0.1)
