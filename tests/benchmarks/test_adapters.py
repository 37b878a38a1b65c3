"""Adapters of peers against traceTorch, where both compute the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from benchmarks.adapters import floor, ours
from benchmarks.cases import ADAPTATION, ADAPTATION_DECAY, DECAY, Case, all_cases, quick
from benchmarks.torch_task import TorchTask, inputs
from tracetorch import snn


def case(kind: str) -> Case:
    return replace(next(c for c in all_cases() if c.kind == kind and c.way == "forward"), B=4)


def output(adapter: Any, of: Case) -> Tensor:
    task = adapter.prepare(of)
    assert isinstance(task, TorchTask)
    task.reset()
    with torch.no_grad():
        return task.model(task.x)


def test_delays_in_plain_pytorch_are_ours() -> None:
    of = case("delays")
    products = [part for part in ours.model_of(of).children() if not isinstance(part, snn.LIF)]
    with torch.no_grad():
        y = tt.unroll(torch.nn.Sequential(*products), inputs(of))
    # the floor is the network without its neurons
    torch.testing.assert_close(y, output(floor, of), rtol=1e-4, atol=1e-4)


def test_spikingjelly_runs_the_same_network_with_delays() -> None:
    pytest.importorskip("spikingjelly")
    from benchmarks.adapters import spikingjelly

    of = case("delays")
    # a rounding may move a spike, and all behind it
    close = (output(ours, of) - output(spikingjelly, of)).abs() < 1e-3
    assert close.float().mean() > 0.99


@pytest.mark.parametrize("kind", ["sew", "spikformer"])
def test_published_networks_have_the_same_weights(kind: str) -> None:
    pytest.importorskip("spikingjelly")
    from benchmarks.adapters import relu, spikingjelly

    of = quick(next(c for c in all_cases() if c.kind == kind))
    counts = []
    with torch.device("meta"):
        for adapter in (ours, spikingjelly, relu):
            task: Any = adapter.prepare(of)
            counts.append(sum(p.numel() for p in task.learnable if p.ndim > 1))
    assert len(set(counts)) == 1
    assert counts[0] > 9_000_000


class Lagged(snn.Neuron):
    """ALIF as Norse has it: the input is taken a step later, and a spike resets to zero."""

    states = ("mem", "adaptation", "current")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.threshold("level", 1.0)

    @staticmethod
    def step(x, mem, adaptation, current, *, level, spike):
        mem = DECAY * mem + current
        fired = spike(mem - level - ADAPTATION * adaptation)
        return fired, mem * (1 - fired), ADAPTATION_DECAY * adaptation + fired, x


def test_norse_adapts_as_we_do() -> None:
    pytest.importorskip("norse")
    from benchmarks.adapters import norse

    of = case("alif")
    expected = tt.unroll(Lagged(of.N), inputs(of))
    agree = output(norse, of) == expected
    assert 0.05 < expected.mean() < 0.5
    assert agree.float().mean() > 0.999
