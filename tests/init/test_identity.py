"""Test the start of residual blocks as the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import NEURONS, Net
from tests.refusals import check, refusals, unchanged
from tracetorch import neurons, snn
from tracetorch.init import identity_

generator = torch.Generator().manual_seed(0)
x = (torch.rand(30, 3, 4, generator=generator) < 0.5).float()


def block(combine: Any, neuron: nn.Module | None = None, **options: Any) -> snn.SEWBlock:
    torch.manual_seed(0)
    parts = (nn.Linear(4, 6), snn.LIF(6), nn.Linear(6, 4), nn.BatchNorm1d(4))
    return snn.SEWBlock(nn.Sequential(*parts, neuron or snn.LIF(4, **options)), combine)


@pytest.mark.parametrize("combine", ["add", "and", "iand"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        *(pytest.param(o, marks=pytest.mark.slow) for o in ({"beta_ema": True}, {"reset": "zero"})),
    ],
)
@pytest.mark.parametrize("by", ["layer", "step"])
def test_output_is_the_input(combine: Any, options: Any, by: Any) -> None:
    net: Any = nn.Sequential(block(combine, **options), block(combine, **options))
    identity_(net)
    y = tt.unroll(net, x, by=by, from_rest=True)
    assert torch.equal(y, x)
    y.sum().backward()
    norm: Any = net[0].body[3]
    assert not bool(norm.weight.any())
    assert bool(norm.weight.grad.any()) or combine == "and"  # from where it can leave


CANNOT_FIRE_AT_EVERY_STEP = ("RefractoryLIF", "RF", "BRF", "SigmaDelta")


@pytest.mark.parametrize("name", ["SLIF", *NEURONS])
@pytest.mark.parametrize("combine", ["add", "and"])
def test_any_neuron_is_silent_or_refused(name: str, combine: Any) -> None:
    made = block(combine, getattr(neurons if name in NEURONS else snn, name)(4))
    if combine == "and" and name in CANNOT_FIRE_AT_EVERY_STEP:
        with pytest.raises(ValueError, match="must not be refractory or slow"):
            identity_(made)
        return
    identity_(made)
    assert torch.equal(tt.unroll(made, x), x)


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
def test_refused_by_path(call: str, error: str) -> None:
    def run(model: Any) -> None:
        net = nn.ModuleList([block("add"), model]) if isinstance(model, snn.SEWBlock) else model
        with unchanged(*[net] * isinstance(net, nn.Module)):
            identity_(net)

    check(f"run({call})", error, {**globals(), "run": run})


def tied(kind: str) -> nn.Module:
    """A block whose last layer shares memory with another layer, or is beside it."""
    made: Any = snn.SEWBlock(nn.Sequential(nn.Linear(4, 4), snn.LIF(4)))
    stem: Any = nn.Linear(4, 4)
    if kind == "parameter":
        stem.weight = made.body[0].weight
    elif kind == "storage":
        stem.weight = nn.Parameter(made.body[0].weight.data.t())
    elif kind == "bias":
        stem.bias = made.body[0].bias
    else:
        vector, start = torch.randn(20), 14 if kind == "part of a vector" else 16
        made.body[0].weight.data = vector[:16].view(4, 4)
        stem.bias.data = vector[start : start + 4]
    return nn.Sequential(stem, snn.LIF(4), made)


@pytest.mark.parametrize("kind", ["parameter", "storage", "part of a vector", "bias"])
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
    assert torch.equal(tt.unroll(blocks[0], x), x)


@pytest.mark.parametrize("combine", ["add", "iand"])
def test_a_silent_body_may_have_a_delay_behind_and_keeps_its_states(combine: Any) -> None:
    made = snn.SEWBlock(delayed(), combine)
    tt.unroll(made, x)
    states = tt.get_states(made)
    identity_(made)
    torch.testing.assert_close(tt.get_states(made), states, rtol=0, atol=0)
    assert torch.equal(tt.unroll(made, x, from_rest=True), x)
