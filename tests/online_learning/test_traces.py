"""Test traces: restarts, the rules that share or shorten them, and their memory."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import tracetorch as tt
from tests.cases import layer, sequence, vary, weighted_sum
from tests.online_learning.cases import (
    STEPS,
    assert_same,
    bptt_gradients,
    convolution,
    named_gradients,
    network,
    online_gradients,
    two_layers,
)
from tracetorch import snn


@pytest.mark.parametrize(
    "build",
    [
        lambda: network(layer("SLIF", 5)),
        lambda: network(layer("RLIF", 5), nn.Linear(5, 5), snn.Readout(5, beta_rank=0)),
        convolution,
    ],
    ids=["one layer", "filtered", "convolution"],
)
def test_samples_restart_by_themselves(build: Callable[[], nn.Sequential]) -> None:
    net, x = build(), sequence(12, 4, 6)
    where = torch.tensor([True, False, False, True])
    grads = []
    for module in (net, tt.online(net)):
        tt.zero_states(net)
        total = torch.zeros((), dtype=torch.float64)
        for number, step in enumerate(x):
            if number == 5:
                tt.zero_states(module, where=where)
            total = total + (number + 1) * weighted_sum(module(step))
        total.backward()
        grads.append(named_gradients(net))
    assert_same(grads[1], grads[0])


def test_eprop_is_exact_where_nothing_is_dropped() -> None:
    # with a reset that has no gradient, one layer has no other path through its spikes
    setup: Any = {"beta_setup": {}, "pos_threshold_setup": {"learnable": False}}
    net = network(snn.LeakyIntegrator(5, **setup, detach_reset=True))
    x = sequence(STEPS, 4, 6)
    assert_same(online_gradients(net, x, "eprop"), bptt_gradients(net, x))


@pytest.mark.parametrize(
    "build", [lambda: network(snn.SLIF(5)), pytest.param(convolution, marks=pytest.mark.slow)]
)
def test_ottt_is_eprop_where_neurons_decay_alike(build: Callable[[], nn.Sequential]) -> None:
    net, x = build(), sequence(STEPS, 4, 6)
    eprop, ottt = (online_gradients(net, x, rule) for rule in ("eprop", "ottt"))
    assert_same(ottt, eprop)
    vary(net)
    eprop, ottt = (online_gradients(net, x, rule) for rule in ("eprop", "ottt"))
    name = next(name for name in eprop if name.endswith("weight"))
    assert not torch.allclose(ottt[name], eprop[name], rtol=1e-3)


def test_last_layer_of_two_is_exact() -> None:
    net, x = two_layers(), sequence(STEPS, 4, 6)
    found, expected = online_gradients(net, x, "eprop"), bptt_gradients(net, x)
    for name in ("2.weight", "2.bias", "3.raw_beta", "4.weight", "4.bias"):
        assert_same(found[name], expected[name])
    assert not torch.allclose(found["0.weight"], expected["0.weight"], rtol=1e-2)


def live_tensors() -> tuple[int, int]:
    """Count all tensors that there are, and their bytes."""
    gc.collect()
    tensors = (each for each in gc.get_objects() if issubclass(type(each), Tensor))
    found = [each for each in tensors if not is_lazy(each)]
    return len(found), sum(each.numel() * each.element_size() for each in found)


def test_steps_leave_nothing_behind() -> None:
    learner, x = tt.online(two_layers(), "eprop"), sequence(4, 6)
    counts = []
    for _ in range(3):
        for _ in range(20):
            learner(x).sum().backward()
        counts.append(live_tensors())
    # what other tests have left may go meanwhile
    assert counts[2][0] <= counts[1][0]
    assert counts[2][1] <= counts[1][1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    learner, x = tt.online(network(snn.LIF(5))), sequence(4, 6)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for number in range(10_000):
        if number == 2_000:
            before = resident()
        learner(x).sum().backward()
    # a step's graph alone has some 20 kB: kept, it would be hundreds of MB
    assert resident() - before < 4e6
