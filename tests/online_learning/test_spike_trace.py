"""Test spike traces: closed forms, and a compiled loop that equals steps."""

import math

import pytest
import torch

from tests.cases import stepped
from tracetorch.online_learning.spike_trace import SpikeTrace


@pytest.mark.parametrize("nearest", [False, True])
def test_trace_decays_from_the_spikes_that_count(nearest: bool) -> None:
    x = torch.zeros(6, 1, 1, dtype=torch.float64)
    x[1] = x[3] = 1
    q = math.exp(-1 / 7)
    _, states = SpikeTrace(1, 7.0, nearest).forward_sequence(x, ["trace"])
    both = 1.0 if nearest else 1 + q * q
    expected = torch.tensor([0, 1, q, both, q * both, q * q * both], dtype=torch.float64)
    torch.testing.assert_close(states["trace"].flatten(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("dim", [-1, -3])
def test_loop_gives_what_the_trace_was_before_each_spike(nearest: bool, dim: int) -> None:
    shape = (40, 2, 3) if dim == -1 else (40, 2, 3, 2, 2)
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    looped, by_step = (SpikeTrace(3, 5.0, nearest, dim) for _ in range(2))
    before, states = looped.forward_sequence(x, ["trace"])
    assert torch.equal(before, stepped(by_step, x))
    assert torch.equal(looped.trace, by_step.trace)
    torch.testing.assert_close(before[1:], math.exp(-1 / 5) * states["trace"][:-1])
