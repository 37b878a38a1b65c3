from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetorch import decode, encode


def test_linear_latency_exactly() -> None:
    x = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    spikes = encode.latency(x, 5)
    assert spikes.shape == (5, 2, 2)
    assert decode.first_spike(spikes).tolist() == [[5.0, 3.0], [2.0, 0.0]]
    assert spikes.sum(0).tolist() == [[0.0, 1.0], [1.0, 1.0]]
    x = torch.tensor([0.5, 0.50001, 0.75, 1.0])  # what is above the threshold fills the time
    assert decode.first_spike(encode.latency(x, 5, threshold=0.5)).tolist() == [5, 4, 2, 0]


def test_exponential_latency_is_the_threshold_crossing_of_a_charged_membrane() -> None:
    x, tau, threshold = torch.tensor([0.21, 0.3, 0.5, 1.0, 3.0]).double(), 20.0, 0.2
    times = decode.first_spike(encode.latency(x, 100, kind="exponential"))
    fine = 1000  # integrate dv/dt = (x - v) / tau in thousandths of a step
    given = x.numpy()
    v, reached = np.zeros_like(given), np.full_like(given, math.inf)
    for k in range(100 * fine):
        v = v + (given - v) / (tau * fine)
        reached = np.where((v >= threshold) & np.isinf(reached), (k + 1) / fine, reached)
    assert torch.equal(times, torch.from_numpy(reached).round())


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8),
    st.integers(1, 300),
    st.sampled_from(["linear", "exponential"]),
)
def test_stronger_values_fire_once_and_never_later(values, steps, kind) -> None:
    x = torch.tensor(sorted(values))
    spikes = encode.latency(x, steps, kind=kind)
    assert spikes.sum(0).max() <= 1
    assert bool((decode.first_spike(spikes).diff() <= 0).all())
    if kind == "linear":
        assert torch.equal(spikes.sum(0), (x > 0).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_distinguishes_thousands_of_steps(dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, 0.25], dtype=dtype)
    spikes = encode.latency(x, 5001)
    assert spikes.dtype == dtype
    assert decode.first_spike(spikes).tolist() == [2500, 3750]
