"""Test one step: what stands around a layer, and what no trace follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, sequence
from tests.online_learning.cases import (
    STEPS,
    assert_exact,
    assert_refused,
)
from tracetorch import snn


class Parallel(nn.Module):
    """Two neuron layers beside each other, one of which gets the sum of two products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 5) for _ in range(3))
        self.left, self.right = layer("SLIF", 5), layer("RLIF", 5)

    def forward(self, x: Tensor) -> Tensor:
        drive = torch.tanh(self.first(x)) * 2 + self.second(x)
        return self.left(drive) * self.right(self.third(x).relu_())


def tied() -> nn.Module:
    product = nn.Linear(6, 6)
    return nn.Sequential(product, layer("LIF", 6), product)


class Noisy(nn.Module):
    """Noise in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.noise, self.neuron = (
            nn.Linear(6, 5),
            snn.Noise(5, seed=0),
            layer("SLIF", 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return self.neuron(y + 0.3 * self.noise(y))


class Inner(snn.Neuron):
    """A noise of its own, and an input that is given, whose sizes are learned."""

    inputs = ("x", "noise", "modulator")
    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.noise = snn.Noise(num_neurons, seed=0)
        self.decay("beta", 0.9)
        self.weight("size", 0.3)
        self.threshold("pos_threshold", 0.5)

    @staticmethod
    def step(
        x: Tensor,
        noise: Tensor,
        modulator: Tensor,
        mem: Tensor,
        *,
        beta: Tensor,
        size: Tensor,
        pos_threshold: Tensor,
        spike: Any,
    ) -> Any:
        mem = beta * mem + modulator * x + size * noise
        fired = spike(mem - pos_threshold)
        return fired, mem - fired * pos_threshold


class Modulated(nn.Module):
    """A neuron with three inputs: the product, its noise, and a value for each sample."""

    def __init__(self, named: bool, gradient: bool = False) -> None:
        super().__init__()
        self.product, self.neuron = nn.Linear(6, 5), Inner(5)
        self.named = named
        self.gate = nn.Parameter(torch.ones(()), requires_grad=gradient)

    def forward(self, x: Tensor) -> Tensor:
        modulator = self.gate * x.detach().mean(-1, keepdim=True).abs()
        y = self.product(x)
        return self.neuron(y, modulator=modulator) if self.named else self.neuron(y, modulator)


PLACED = {
    "places": lambda: nn.Sequential(nn.Linear(6, 5), layer("LIF", 5)),
    "between": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), layer("SLIF", 5), nn.Tanh()),
    "no product": lambda: nn.Sequential(layer("LIF", 6), nn.Linear(6, 2)),
    "parallel": Parallel,
    "tied": tied,
    "noise": lambda: nn.Sequential(Noisy()),
    "noise inside": lambda: nn.Sequential(Modulated(named=False)),
    "named input": lambda: nn.Sequential(Modulated(named=True)),
}


@pytest.mark.parametrize("name", PLACED)
def test_what_stands_around_a_layer_is_exact(name: str) -> None:
    shape = (STEPS, 2, 3, 6) if name == "places" else (STEPS, 4, 6)
    assert_exact(PLACED[name]().double(), sequence(*shape))


class Zeroing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = snn.LIF(6)

    def forward(self, x: Tensor) -> Tensor:
        tt.zero_states(self.neuron)
        return self.neuron(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = snn.LIF(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.neuron(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(snn.LIF(6), nn.Linear(6, 6), snn.Readout(6, torch.rand(6))),
            "0 -> states of 2: what it does there later decays with the mean",
        ),
        (
            nn.Sequential(nn.Linear(6, 6), snn.LIF(6), snn.LIF(6)),
            "1.raw_beta -> states of 2: no trace of",
        ),
        (snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), "the outputs of the step before are const"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), snn.LIF(6)), "0.weight -> states of 2"),
        (Twice(), "layer 'neuron', .* is called twice in one step"),
        (Modulated(True, gradient=True), "a further input, modulator, with a gradient"),
        (Zeroing(), "layer 'neuron', .* has its states changed inside forward"),
    ],
)
def test_what_cannot_be_exact_is_refused(model: nn.Module, message: str) -> None:
    assert_refused(model, message)


def test_learned_slope_of_a_surrogate_is_dropped() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(2.0))

        def forward(self, u: Tensor) -> Tensor:
            return tt.functional.atan_surrogate(2.0)(self.k * u)

    net = nn.Sequential(nn.Linear(6, 5), snn.LIF(5, surrogate_derivative=Slope()))
    with pytest.raises(ValueError, match="pos_spike -> states of 1: a param"):
        tt.online(net)(torch.ones(2, 6))
