"""Test threshold-dependent batch norm, and the start of residual blocks as the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import NEURONS, Net, layer
from tests.refusals import check, refusals, unchanged
from tracetorch import neurons, snn
from tracetorch.init import identity_, tdbn_
from tracetorch.init.response import distance_to_threshold

x = torch.rand(3, 4, 2, 8, 8)


class Block(nn.Module):
    """A residual block with a shortcut that has a norm of its own, and an addition in place."""

    def __init__(self, into: int, out: int, stride: int, threshold: float) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride), nn.BatchNorm2d(out))
        self.second = nn.BatchNorm2d(out)  # registered before what is called before it
        self.first = nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.middle = snn.LIF(out, dim=-3)
        self.last = snn.LIF(out, dim=-3, pos_threshold=threshold)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.conv2(self.middle(self.first(self.conv1(x)))))
        y += self.shortcut(x)
        return self.last(y)


def test_branches_of_a_residual_network() -> None:
    net: Any = nn.Sequential(
        Block(2, 4, 2, 0.5), Block(4, 4, 1, 2.0), nn.Flatten(), nn.Linear(64, 3)
    )
    found = tdbn_(net.requires_grad_(False), x, alpha=0.8)
    for number, threshold in (("0", 0.5), ("1", 2.0)):
        block: Any = net[int(number)]
        branch = torch.full((4,), 0.8 * threshold / 2**0.5)
        torch.testing.assert_close(block.second.weight, branch)
        torch.testing.assert_close(block.shortcut[1].weight, branch)
        torch.testing.assert_close(block.first.weight, torch.full((4,), 0.8))
        assert found[f"{number}.second"] == found[f"{number}.shortcut.1"] == f"{number}.last"
        assert found[f"{number}.first"] == f"{number}.middle"
    assert len(found) == 6
    assert not net[0].first.weight.requires_grad


def test_what_may_stand_between() -> None:
    thresholds = torch.tensor([0.5, 1.0, 1.5])
    between = (nn.ReLU(inplace=True), nn.Dropout(), snn.Delay(3, -3, max_delay=2), nn.MaxPool2d(2))
    net: Any = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        *between,
        snn.LIF(3, pos_threshold=thresholds, dim=-3),
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert tdbn_(net, x[0], steps=2) == {"1": "6"}
    torch.testing.assert_close(net[1].weight.detach(), thresholds)
    del before["1.weight"]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert net.training
    assert net[4].past is None


def test_output_is_that_of_the_paper_for_norms_of_each_step_and_of_channels() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), snn.LIF(3, pos_threshold=0.7))
    clip = torch.rand(6, 5, 4)
    tdbn_(net, clip)
    _, seen = tt.unroll(net, clip, record="2.input")
    drive = net[0](clip)
    mean, var = drive.mean((0, 1)), drive.var((0, 1), correction=0)
    torch.testing.assert_close(seen["2.input"], 0.7 * (drive - mean) / (var + 1e-5).sqrt())
    norm = snn.BatchNormThroughTime(3, steps=5)
    loop = snn.Recurrent(snn.LIF(3, pos_threshold=0.5), nn.Linear(3, 3))
    found = tdbn_(nn.Sequential(nn.Linear(4, 3), norm, loop), torch.rand(6, 5, 4))
    assert found == {"1": "2.neuron"}
    torch.testing.assert_close(norm.norm.weight.detach(), torch.full((5, 3), 0.5))
    norms: Any = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    net = Net(
        lambda m, x: m.lif(torch.cat([n(x) for n in m.norms], -1)), norms=norms, lif=snn.LIF(4)
    )
    tdbn_(net, torch.rand(3, 5, 2))
    for of_channels in norms:
        torch.testing.assert_close(of_channels.weight.detach(), torch.ones(2))


@pytest.mark.parametrize("name", ["LIF", "SRLIF", "BSLIF", *NEURONS])
def test_threshold_of_any_neuron(name: str) -> None:
    neuron = getattr(neurons, name)(3) if name in NEURONS else layer(name, 3)
    net: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), neuron)
    tdbn_(net, torch.rand(3, 5, 4))
    torch.testing.assert_close(net[1].weight.double().detach(), distance_to_threshold(neuron))
    if name == "AdEx":  # in millivolts
        assert bool((net[1].weight > 5).all())
    if name in ("LIF", "BSLIF"):  # of others the rest is not at 0
        torch.testing.assert_close(net[1].weight.detach(), neuron.pos_threshold.detach())


def no_neuron(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), *parts)


def net(function: Any) -> nn.Module:
    parts = {"norm": nn.BatchNorm1d(4), "a": snn.LIF(4), "b": snn.LIF(4, pos_threshold=2.0)}
    return Net(function, **parts)


def unlike() -> nn.Module:
    last = snn.LIF(4, pos_threshold=torch.arange(1.0, 5.0))
    return nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2), nn.Flatten(), last)


def pruned() -> nn.Module:
    model: Any = no_neuron(snn.LIF(3))
    prune.random_unstructured(model[1], "weight", 1)
    return model


def shared() -> nn.Module:
    model = no_neuron(snn.LIF(3), nn.BatchNorm1d(3), snn.LIF(3, pos_threshold=2.0))
    model[3].weight = nn.Parameter(model[1].weight.data)  # type: ignore[arg-type]
    return model


@refusals(
    r"""
    no_neuron(snn.Readout(3)) -> ValueError: '1' .* drives '2' \(Readout\).*not neurons that spike
    no_neuron(nn.Linear(3, 2), snn.LIF(2)) -> ValueError: '1' .* drives '2' \(Linear\) on
    no_neuron(nn.ReLU()) -> ValueError: '1' \(BatchNorm1d\) drives nothing on this input
    nn.Sequential(nn.BatchNorm1d(4, affine=False), snn.LIF(4))
        -> ValueError: '0' .* needs affine=True
    nn.Sequential(nn.Linear(4, 3), snn.LIF(3)) -> ValueError: the model has no batch norm
    net(lambda m, x: m.a(y := m.norm(x)) + m.b(y))
        -> ValueError: 'norm' \(BatchNorm1d\) drives 'a', 'b', whose thresholds differ
    net(lambda m, x: m.a(x)) -> ValueError: 'norm' \(BatchNorm1d\) drives nothing on this input
    unlike() -> ValueError: '1' .* has 2 channels, and '3' behind it 4 thresholds
    pruned() -> ValueError: '1' \(BatchNorm1d\) is parametrized, pruned
    shared() -> ValueError: '3' and '1' share their weight
    no_neuron(), alpha="1" -> TypeError: alpha must be a number
    "model" -> TypeError: expected an nn\.Module
    """
)
def test_norms_are_refused_by_path(call: str, error: str) -> None:
    def run(model: Any, **arguments: Any) -> None:
        with unchanged(*[model] * isinstance(model, nn.Module)):
            tdbn_(model, torch.rand(3, 5, 4), **arguments)

    check(f"run({call})", error, {**globals(), "run": run})


def test_what_does_not_forget_is_scaled_in_inference_mode_and_keeps_its_states() -> None:
    net: Any = no_neuron(snn.LIF(3, beta=torch.ones(3), pos_threshold=0.5))
    net(torch.ones(7, 4))
    membranes = net[2].mem
    with torch.inference_mode():
        assert tdbn_(net, torch.rand(3, 5, 4)) == {"1": "2"}
    assert net[2].mem is membranes
    torch.testing.assert_close(net[1].weight.detach(), torch.full((3,), 0.5))


# Blocks that start as the identity

SPIKES = (torch.rand(30, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def block(combine: Any, neuron: nn.Module | None = None, **options: Any) -> snn.SEWBlock:
    torch.manual_seed(0)
    parts = (nn.Linear(4, 6), snn.LIF(6), nn.Linear(6, 4), nn.BatchNorm1d(4))
    return snn.SEWBlock(nn.Sequential(*parts, neuron or snn.LIF(4, **options)), combine)


@pytest.mark.parametrize("combine", ["add", "and", "iand"])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_output_is_the_input(combine: Any, by: Any) -> None:
    net: Any = nn.Sequential(block(combine), block(combine, reset="zero", beta_ema=True))
    identity_(net)
    y = tt.unroll(net, SPIKES, by=by, from_rest=True)
    assert torch.equal(y, SPIKES)
    y.sum().backward()
    norm: Any = net[0].body[3]
    assert not bool(norm.weight.any())
    assert bool(norm.weight.grad.any()) or combine == "and"  # from where it can leave


CANNOT_FIRE_AT_EVERY_STEP = ("RefractoryLIF", "RF", "BRF", "SigmaDelta")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["SLIF", *NEURONS])
@pytest.mark.parametrize("combine", ["add", "and"])
def test_any_neuron_is_silent_or_refused(name: str, combine: Any) -> None:
    made = block(combine, getattr(neurons if name in NEURONS else snn, name)(4))
    if combine == "and" and name in CANNOT_FIRE_AT_EVERY_STEP:
        with pytest.raises(ValueError, match="must not be refractory or slow"):
            identity_(made)
        return
    identity_(made)
    assert torch.equal(tt.unroll(made, SPIKES), SPIKES)


def test_convolutions_a_shortcut_and_a_norm_per_step() -> None:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), snn.BatchNormThroughTime(4, -3, steps=3), snn.LIF(4, dim=-3)
    )
    shortcut = nn.Sequential(nn.Conv2d(2, 4, 1), snn.LIF(4, dim=-3))
    made = snn.SEWBlock(body, shortcut=shortcut)
    identity_(made)
    clip = torch.rand(5, 3, 2, 6, 6)
    assert torch.equal(tt.unroll(made, clip), tt.unroll(shortcut, clip, from_rest=True))


def branches() -> nn.Module:
    parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "n": snn.LIF(4, pos_threshold=0.05)}
    return Net(lambda m, x: m.n(m.a(x) + m.b(x)), **parts)


def delayed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), snn.LIF(4), snn.Delay(4, max_delay=2, delay=1.0)
    )


def sew(*parts: nn.Module, combine: Any = "add") -> snn.SEWBlock:
    return snn.SEWBlock(nn.Sequential(*parts), combine)


@refusals(
    r"""
    nn.Linear(3, 3) -> ValueError: Linear has no snn\.SEWBlock
    nn.Sequential(block("and", neurons.RefractoryLIF(4)))
        -> ValueError: block '0' is not the identity .* '0\.body\.4' must not be refractory
    block("iand", snn.RLIF(4, bias=0.3)) -> ValueError: fires without input
    sew(nn.Linear(4, 4, bias=False), snn.LIF(4), combine="and")
        -> ValueError: '1\.body\.0' has no bias, without which '1\.body\.1'
    block("add", snn.Readout(4)) -> ValueError: '1\.body' does not end in neurons that spike
    sew(nn.Linear(4, 4), snn.LIF(4), snn.LIF(4))
        -> ValueError: '1\.body' does not end in neurons that spike, behind a layer with a weight
    nn.Sequential(block("add", snn.Recurrent(snn.LIF(4), nn.Linear(4, 4))))
        -> ValueError: '0\.body\.4\.neuron' is recurrent
    sew(nn.Linear(4, 4), snn.LIF(4), nn.Linear(4, 4)) -> ValueError: block '1' is not the identity
    snn.SEWBlock(delayed(), "and") -> ValueError: block '1' is not the identity
    snn.SEWBlock(branches()) -> ValueError: block '1' is not the identity
    sew(nn.Unflatten(1, (5, 2)), nn.Linear(2, 4), snn.LIF(4), nn.Flatten())
        -> ValueError: SEWBlock does not run on the shapes that its layers show
    "model" -> TypeError: expected an nn\.Module
    """
)
def test_blocks_are_refused_by_path(call: str, error: str) -> None:
    def run(model: Any) -> None:
        net = nn.ModuleList([block("add"), model]) if isinstance(model, snn.SEWBlock) else model
        with unchanged(*[net] * isinstance(net, nn.Module)):
            identity_(net)

    check(f"run({call})", error, {**globals(), "run": run})


def tied(kind: str) -> nn.Module:
    """A block whose last layer shares memory with another layer, or is beside it."""
    made: Any = snn.SEWBlock(nn.Sequential(nn.Linear(4, 4), snn.LIF(4)))
    stem: Any = nn.Linear(4, 4)
    last = made.body[0]
    if kind == "parameter":
        stem.weight = last.weight
    elif kind == "storage":
        stem.weight = nn.Parameter(last.weight.data.t())
    else:
        vector, start = torch.randn(20), 14 if kind == "part of a vector" else 16
        last.weight.data = vector[:16].view(4, 4)
        stem.bias.data = vector[start : start + 4]
    return nn.Sequential(stem, snn.LIF(4), made)


@pytest.mark.parametrize("kind", ["parameter", "storage", "part of a vector"])
def test_memory_of_another_layer_is_not_set_to_zero(kind: str) -> None:
    net = tied(kind)
    shared = r"'0' shares a parameter with '2\.body\.0'"
    with unchanged(net), pytest.raises(ValueError, match=shared):
        identity_(net)


def test_neighbours_in_memory_and_blocks_that_share_their_last_layer() -> None:
    net: Any = tied("beside")
    bias = net[0].bias.clone()
    identity_(net)
    assert torch.equal(net[0].bias, bias)
    blocks: Any = nn.Sequential(block("add"), block("iand"))
    blocks[1].body[3].weight = blocks[0].body[3].weight
    identity_(blocks)
    assert torch.equal(tt.unroll(blocks[0], SPIKES), SPIKES)


@pytest.mark.parametrize("combine", ["add", "iand"])
def test_a_silent_body_may_have_a_delay_behind_and_keeps_its_states(combine: Any) -> None:
    made = snn.SEWBlock(delayed(), combine)
    tt.unroll(made, SPIKES)
    states = tt.get_states(made)
    identity_(made)
    torch.testing.assert_close(tt.get_states(made), states, rtol=0, atol=0)
    assert torch.equal(tt.unroll(made, SPIKES, from_rest=True), SPIKES)
