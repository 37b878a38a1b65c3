"""Test the derivatives by lane: what mixes lanes, however few they are, is found and refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import layer, sequence
from tests.fuse.test_sequence import MixingNeuron
from tests.online_learning.cases import assert_exact, assert_refused
from tests.unrolling.memories import Says
from tracetorch import snn


class Drawing(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + x + torch.rand_like(x)
        return mem, mem


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MixingNeuron, "has a step that mixes neurons or samples"),
        (Drawing, "has other states than its step computes from the same input"),
    ],
)
def test_more_than_a_pointwise_step_is_refused(kind: type[snn.Neuron], message: str) -> None:
    assert_refused(kind(6), message)


MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "neurons swapped": lambda x: x.flip(-1),
    "neurons summed": lambda x: x + 0.3 * x.roll(1, -1),
    "neurons subtracted": lambda x: x - x.mean(-1, keepdim=True),
    "samples swapped": lambda x: x.flip(0),
    "samples summed": lambda x: x + x.roll(1, 0),
    "samples subtracted": lambda x: x - x.mean(0),
    "one lane into another": lambda x: torch.cat(
        [x.flatten()[:1] + 1e-3 * x.flatten()[-1], x.flatten()[1:]]
    ).view_as(x),
}


def mixing_neuron(mixed: Callable[[Tensor], Tensor], place: str) -> type[snn.Neuron]:
    class Mixing(snn.Neuron):
        states = ("mem", "adaptation")

        @staticmethod
        def step(x: Tensor, mem: Tensor, adaptation: Tensor) -> Any:
            x, adaptation = (mixed(x), adaptation) if place == "input" else (x, mixed(adaptation))
            # one next state alone is mixed, so that nothing else gives it away
            return x, 0.9 * mem + x.detach(), 0.5 * adaptation

    return Mixing


@pytest.mark.parametrize("place", ["input", "state", "before"])  # of the mixture
@pytest.mark.parametrize("name", MIXTURES)
def test_lanes_that_are_mixed_are_found(name: str, place: str) -> None:
    for samples in (1, 2):
        if "samples" in name and samples == 1:
            continue  # alone, a sample is mixed with nothing
        for count in (1, 2, 3, 4):
            if count == 1 and ("samples" not in name or samples == 1):
                continue
            if place == "before":
                net = nn.Sequential(nn.Linear(6, count), Says(MIXTURES[name]), snn.LIF(count))
            else:
                kind = mixing_neuron(MIXTURES[name], place)
                net = nn.Sequential(nn.Linear(6, count), kind(count))
            with pytest.raises(ValueError, match=r"mixes neurons or samples|0.weight -> states"):
                tt.online(net)(torch.rand(samples, 6))


def test_every_pair_of_neurons_that_is_swapped_is_found() -> None:
    class Swapped(nn.Module):
        order = torch.arange(32)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, self.order]

    swapped = Swapped()
    net = nn.Sequential(nn.Linear(6, 32), swapped, snn.LIF(32))
    numbers = torch.randperm(32, generator=torch.Generator().manual_seed(0)) % 16
    pairs = [(i, j) for i in range(32) for j in range(i) if numbers[i] == numbers[j]]
    for i, j in pairs:  # those that one probe of 16 values cannot tell apart
        swapped.order = torch.arange(32)
        swapped.order[[i, j]] = swapped.order[[j, i]]
        with pytest.raises(ValueError, match=r"0.weight -> states of 2: no trace"):
            tt.online(net)(torch.rand(1, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_pointwise_in_half_precision_is_not_refused(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.SiLU(), nn.Tanh(), snn.LIF(40)).to(dtype)
    learner = tt.online(net)
    for step in torch.rand(3, 4, 6, dtype=dtype):
        learner(step).sum().backward()


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "stride": 2}, {"dilation": 2, "padding": "valid"}],
    ids=["plain", "stride", "dilation"],
)
def test_convolution_is_exact(options: Any) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), **{"padding": (1, 0), **options}),
        nn.BatchNorm2d(3, affine=False),
        layer("LIF", 3, dim=-3),
        nn.Flatten(),
        nn.LazyLinear(2),
    ).double()
    net(sequence(2, 2, 5, 6))
    tt.zero_states(net)
    assert_exact(net.eval(), sequence(10, 2, 2, 5, 6))


def test_pruned_product_has_no_trace() -> None:
    net = nn.Sequential(nn.Linear(6, 5), layer("LIF", 5), nn.Linear(5, 4))
    prune.random_unstructured(net[0], "weight", 0.3)
    with pytest.raises(ValueError, match=r"0.weight_orig -> states of 1: no trace of earlier"):
        tt.online(net)(torch.rand(2, 6))
    tt.zero_states(net)
    learner = tt.online(net, "eprop")
    for step in torch.rand(3, 2, 6):
        learner(step).sum().backward()
