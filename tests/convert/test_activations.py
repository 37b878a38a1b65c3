"""Integrate-and-fire neurons follow a simulation; a quantised ReLU rounds, and its clip learns."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests.cases import weighted_sum
from tests.convert.networks import eighths
from tests.refusals import check, refusals
from tracetorch import fuse
from tracetorch.convert import IntegrateAndFire, QuantizedReLU
from tracetorch.convert.activations import Change, RunningSum


def simulated(x: list[float], threshold: float, burst: int) -> list[int]:
    """Count the spikes of one neuron, step by step, in Python."""
    mem, found = threshold / 2, []
    for current in x:
        mem += current
        n = max(0, min(math.floor(mem / threshold), burst))
        mem -= n * threshold
        found.append(n)
    return found


@pytest.mark.parametrize("burst", [1, 3])
def test_spikes_are_those_of_the_documentation(burst: int) -> None:
    torch.manual_seed(0)
    x = eighths(40, 2, 3, reach=14)
    layer = IntegrateAndFire(3, 0.75, burst).double()
    found = tt.unroll(layer, x, from_rest=True)
    wanted = [
        simulated(x[:, sample, neuron].tolist(), 0.75, burst)
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


@pytest.mark.parametrize("burst", [1, 3])
def test_gradients_of_the_compiled_loop_are_those_of_the_steps(burst: int) -> None:
    layer, gradients = IntegrateAndFire(3, burst=burst).double(), list[torch.Tensor]()
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, dtype=torch.float64).requires_grad_()
    ways: Any = (("eager", "step"), ("auto", "layer"))
    for backend, by in ways:
        with fuse.backend(backend):
            y = tt.unroll(layer, x, by=by, from_rest=True)
        gradients += torch.autograd.grad(weighted_sum(y), x)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9)


@refusals(
    """
    IntegrateAndFire(2, pos_threshold=0.0) -> ValueError: pos_threshold must be positive
    IntegrateAndFire(2, pos_threshold=-torch.ones(2)) -> ValueError: pos_threshold must be at least
    IntegrateAndFire(2, burst=0) -> ValueError: burst must be at least 1
    setattr(IntegrateAndFire(2), "burst", 0) -> ValueError: burst must be at least 1
    QuantizedReLU(0) -> ValueError: levels must be at least 1
    QuantizedReLU(4, 0.0) -> ValueError: clip must be positive
    """
)
def test_options_are_checked(call: str, error: str) -> None:
    check(call, error, globals())


def test_sums_and_changes() -> None:
    x = eighths(5, 2, 3)
    assert torch.equal(tt.unroll(RunningSum(3), x), x.cumsum(0))
    assert torch.equal(tt.unroll(Change(3), x.cumsum(0)), x)


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_values_are_the_formula(levels: int) -> None:
    relu = QuantizedReLU(levels, 2.0).double()
    x = torch.linspace(-3, 5, 257).double()
    wanted = torch.floor(levels * x / 2 + 0.5).clamp(0, levels) * 2 / levels
    assert torch.allclose(relu(x), wanted, atol=1e-12)
    assert len(relu(x).unique()) == levels + 1
    assert relu(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert relu(torch.ones(0, 3)).shape == (0, 3)


def test_gradient_passes_the_rounding_and_reaches_the_clip() -> None:
    relu = QuantizedReLU(4, 2.0)
    x = torch.tensor([-1.0, 0.8, 1.9, 5.0], requires_grad=True)
    y = relu(x)
    assert y.tolist() == [0.0, 1.0, 2.0, 2.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # what is clipped counts whole, what is rounded by how much, as a share of the clip
    assert relu.clip.grad is not None
    assert relu.clip.grad.item() == pytest.approx(1.0 + 0.1 + 0.05)


def test_clip_below_zero_stays_usable_and_comes_back() -> None:
    relu = QuantizedReLU(4)
    relu.clip.data.fill_(-1.0)
    y = relu(torch.ones(3))
    assert (y > 0).all()
    y.sum().backward()
    assert relu.clip.grad is not None
    assert relu.clip.grad.item() == 3.0
