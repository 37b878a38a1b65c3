"""Test what a diagnosis recommends: ``calibrate_`` as it is written, where it runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import Net
from tests.diagnosis.cases import CLASSES, B, N, dense, mean, recurrent, target, x
from tests.refusals import unchanged
from tracetorch import snn


def attending() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = x[:, None] * torch.tensor([0.5, 1.0, 2.0])[:, None]
        return m.out(m.lif(m.attention(tokens, tokens, tokens)[0]).mean(1))

    attention = nn.MultiheadAttention(N, 2, batch_first=True)
    return Net(forward, attention=attention, lif=snn.LIF(N), out=nn.Linear(N, CLASSES))


class Bumped(snn.Neuron):
    """A neuron with a further input, which no layer of its own gives."""

    inputs = ("x", "bump")
    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.threshold("pos_threshold", 1.0)

    @staticmethod
    def step(x: Any, bump: Any, mem: Any, *, pos_threshold: Any, spike: Any) -> Any:
        mem = 0.9 * mem + x + bump
        fired = spike(mem - pos_threshold)
        return fired, mem - fired * pos_threshold


def between(function: Any, lif: nn.Module) -> nn.Module:
    return Net(function, linear=nn.Linear(N, 8), lif=lif, out=nn.Linear(8, CLASSES))


def product() -> nn.Module:
    """Neurons behind the product of two inputs."""
    return between(lambda m, x, gate: m.out(m.lif(m.linear(x * gate))), snn.LIF(8))


def with_bump() -> nn.Module:
    return between(lambda m, x: m.out(m.lif(y := m.linear(x), 0.01 * y)), Bumped(8))


def forked() -> nn.Module:
    """Two layers of neurons behind one linear layer."""
    parts = {"linear": nn.Linear(N, CLASSES), "a": snn.LIF(CLASSES), "b": snn.LIF(CLASSES)}
    return Net(lambda m, x: m.a(y := m.linear(x)) + m.b(y), **parts)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(N, 8), nn.LayerNorm(8), snn.LIF(8), nn.Linear(8, CLASSES))


PADDED = torch.arange(25)[:, None] < torch.arange(B) % 5 + 15
SMALL = x(scale=0.1)
# the model, the input, the arguments of diagnose, and what calibrate_ says that cannot run
CASES: dict[str, tuple[Any, Any, dict[str, Any], str | None]] = {
    "dense": (dense, x(), {}, None),
    "by step": (dense, x(), {"by": "step"}, None),
    "recurrent": (recurrent, x(), {}, None),
    "static": (dense, x()[0], {"steps": 25}, None),
    "padded": (dense, x(), {"mask": PADDED}, None),
    "two inputs": (product, (SMALL, SMALL), {}, None),
    "two inputs by name": (product, {"x": SMALL, "gate": SMALL}, {}, None),
    "attention": (attending, SMALL, {}, None),
    "a neuron of two inputs": (with_bump, SMALL, {}, "has several inputs"),
    "a norm between": (normed, SMALL, {}, "does not reach a deviation"),
    "one layer before two": (forked, SMALL, {}, "drives 'a', 'b': one scale"),
}
FAST = ("dense", "padded", "a neuron of two inputs", "one layer before two")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_calibrate_is_recommended_where_it_runs_and_nowhere_else(name: str) -> None:
    build, given, arguments, problem = CASES[name]
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("weight"):
                parameter.mul_(0.01)
    with unchanged(model):
        advice = str(tt.diagnose(model, (given, target()), mean, **arguments))
    assert "dead-neurons" in advice
    calls = re.findall(r"tt\.init\.calibrate_\([^)]*\)", advice)
    if problem is not None:
        assert not calls
        with pytest.raises(ValueError, match=problem):
            tt.init.calibrate_(model, given)
        return
    assert calls
    reached = eval(calls[0], {"tt": tt, "model": model, "x": given, **arguments})
    assert all(each.deviation == pytest.approx(0.5, rel=0.05) for each in reached.values())
    again = tt.diagnose(model, (given, target()), mean, **arguments)
    assert not [f for f in again.named("dead-neurons") if f.severity == "error"]
