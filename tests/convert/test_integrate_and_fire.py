"""Integrate-and-fire neurons follow a simulation written from their documentation."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import weighted_sum
from tests.convert.networks import eighths
from tracetorch import fuse
from tracetorch.convert import IntegrateAndFire
from tracetorch.convert.integrate_and_fire import Change, RunningSum, TimedBias

OPTIONS: list[dict[str, Any]] = [
    {"burst": burst, "signed": signed, "limit": limit}
    for burst, signed, limit in itertools.product((1, 3), (False, True), (None, 2))
]


def simulated(x: list[float], threshold: float, burst: int, signed: bool, limit: Any) -> list[int]:
    """Count the spikes of one neuron, step by step, in Python."""
    mem, total, found = threshold / 2, 0, []
    for current in x:
        mem += current
        n = math.floor(mem / threshold)
        n = max(-burst if signed else 0, min(n, burst))
        if limit is not None:
            n = min(n, limit - total)
        if signed:
            n = max(n, -total)
        mem -= n * threshold
        total += n
        found.append(n)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_spikes_are_those_of_the_documentation(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = eighths(40, 2, 3, reach=14)
    layer = IntegrateAndFire(3, 0.75, **options).double()
    found = tt.unroll(layer, x, from_rest=True)
    wanted = [
        simulated(x[:, sample, neuron].tolist(), 0.75, **options)
        for sample, neuron in itertools.product(range(2), range(3))
    ]
    assert torch.equal(found.flatten(1).T, 0.75 * torch.tensor(wanted).double())
    assert set(found.unique().tolist()) >= {0.0, 0.75}
    with fuse.backend("eager"):
        assert torch.equal(found, tt.unroll(layer, x, by="step", from_rest=True))


def test_threshold_may_differ_from_neuron_to_neuron() -> None:
    thresholds = torch.tensor([0.5, 1.0])
    layer = IntegrateAndFire(2, thresholds, dim=-2)
    assert torch.equal(layer.pos_threshold, thresholds)
    assert torch.equal(layer.initial_mem, thresholds / 2)
    spikes = tt.unroll(layer, torch.full((4, 1, 2, 3), 0.5))
    assert spikes.sum(0)[0, :, 0].tolist() == [2.0, 2.0]
    assert spikes[0, 0, :, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_gradients_of_the_compiled_loop_are_those_of_the_steps(options: dict[str, Any]) -> None:
    layer = IntegrateAndFire(3, **options).double()
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    gradients: list[Tensor] = []
    ways: tuple[tuple[Any, Any], ...] = (("eager", "step"), ("auto", "layer"))
    for backend, by in ways:
        leaf = x.clone().requires_grad_()
        with fuse.backend(backend):
            weighted_sum(tt.unroll(layer, leaf, by=by, from_rest=True)).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9)


def test_total_is_a_state_where_spikes_are_counted() -> None:
    assert IntegrateAndFire(1).active_states == ("mem",)
    layer = IntegrateAndFire(1, signed=True)
    assert layer.active_states == ("mem", "total")
    layer(torch.ones(1, 1))
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert again.total.item() == 1.0
    assert repr(again) == "IntegrateAndFire(1, signed=True)"
    assert again(torch.full((1, 1), -2.0)).item() == -1.0
    assert layer(torch.zeros(1, 1)).item() == 0.0  # shares nothing with the copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_threshold": 0.0}, "pos_threshold must be positive"),
        ({"pos_threshold": -torch.ones(2)}, "pos_threshold must be at least"),
        ({"burst": 0}, "burst must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntegrateAndFire(2, **options)


def test_flags_are_checked_when_assigned() -> None:
    layer = IntegrateAndFire(2, surrogate_derivative=tt.functional.boxcar_surrogate(1.0))
    with pytest.raises(TypeError, match="signed must be True or False"):
        layer.signed = 1
    assert layer.spike == tt.functional.boxcar_surrogate(1.0)


def test_sums_changes_and_timed_biases() -> None:
    x = eighths(5, 2, 3)
    assert torch.equal(tt.unroll(RunningSum(3), x), x.cumsum(0))
    assert torch.equal(tt.unroll(Change(3), x.cumsum(0)), x)
    layer = TimedBias(3, 2, -1).double()
    layer.bias = torch.tensor([1.0, 2.0, 3.0])
    on = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).double().view(5, 1, 1)
    assert torch.equal(tt.unroll(layer, x), x + on * layer.bias)
