"""Values and signals as spikes: rates, latencies, fields, changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.refusals import check, refusals
from tracetorch import decode, encode

KINDS: Any = ("bernoulli", "poisson")


inf, nan = math.inf, math.nan
ONE, ZEROS = torch.ones(1), torch.zeros(3, 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mean_and_variance_of_the_spikes(kind: Any, dtype: torch.dtype) -> None:
    T = 40_000
    r = torch.tensor([0.0, 0.01, 0.3, 0.75, 1.0], dtype=dtype)
    spikes = encode.rate(r, T, kind=kind, generator=seeded())
    assert spikes.dtype == dtype
    assert spikes.shape == (T, 5)
    spikes, r = spikes.double(), r.double()
    variance = r * (1 - r) if kind == "bernoulli" else r
    assert bool(((spikes.mean(0) - r).abs() <= 4 * (variance / T).sqrt()).all())
    torch.testing.assert_close(spikes.var(0), variance, rtol=0.1, atol=1e-9)
    assert set(spikes.unique().tolist()) <= ({0.0, 1.0} if kind == "bernoulli" else set(range(12)))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_neurons_are_independent(kind: Any) -> None:
    T = 20_000
    spikes = encode.rate(torch.full((4,), 0.4), T, kind=kind, generator=seeded(1))
    both = torch.cat((spikes[1:], spikes[:-1]), 1).T  # [8, T - 1]
    assert (both.corrcoef() - torch.eye(8)).abs().max() < 4 / T**0.5


def test_poisson_counts_follow_the_poisson_distribution() -> None:
    T, r = 50_000, 1.7
    counts = encode.rate(torch.tensor([r]), T, kind="poisson", generator=seeded()).long().flatten()
    expected = torch.distributions.Poisson(r).log_prob(torch.arange(6.0)).exp()
    found = torch.bincount(counts, minlength=6)[:6] / T
    assert bool(((found - expected).abs() < 4 * (expected / T).sqrt()).all())


@pytest.mark.parametrize("kind", KINDS)
def test_gain_offset_and_generator(kind: Any) -> None:
    x = torch.rand(3, 4, generator=seeded())
    before = torch.get_rng_state()
    one = encode.rate(x, 50, kind=kind, gain=0.5, offset=0.25, generator=seeded(3))
    assert torch.equal(before, torch.get_rng_state())
    again = encode.rate(0.5 * x + 0.25, 50, kind=kind, generator=seeded(3))
    other = encode.rate(0.5 * x + 0.25, 50, kind=kind, generator=seeded(4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # rates above 1 by rounding are clamped
    assert encode.rate(torch.ones(1), 100, kind="bernoulli", offset=1e-7).sum() == 100


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_mean(kind: Any) -> None:
    x = torch.tensor([0.1, 0.9], requires_grad=True)
    spikes = encode.rate(x, 7, kind=kind, gain=0.5, generator=seeded())
    assert torch.equal(spikes, encode.rate(x.detach(), 7, kind=kind, gain=0.5, generator=seeded()))
    weights = torch.randn(7, 2, generator=seeded())
    (spikes * weights).sum().backward()
    torch.testing.assert_close(x.grad, 0.5 * weights.sum(0))


def test_encoders_stay_on_the_device() -> None:
    """The meta device, like a GPU, does not mix with the CPU."""
    x = torch.empty(2, 4, device="meta")
    encoded = [
        *(encode.rate(x, 3, kind=kind) for kind in KINDS),
        *(encode.latency(x, 3), encode.latency(x, 3, kind="exponential")),
        *(encode.delta(x, 0.1), encode.delta(x, 0.1, start=0.0)),
        *(encode.population(x, 3), encode.repeat(x, 3)),
    ]
    assert all(each.is_meta for each in encoded)


def test_linear_latency_exactly() -> None:
    x = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    spikes = encode.latency(x, 5)
    assert spikes.shape == (5, 2, 2)
    assert decode.first_spike(spikes).tolist() == [[5.0, 3.0], [2.0, 0.0]]
    assert spikes.sum(0).tolist() == [[0.0, 1.0], [1.0, 1.0]]
    x = torch.tensor([0.5, 0.50001, 0.75, 1.0])  # what is above the threshold fills the time
    assert decode.first_spike(encode.latency(x, 5, threshold=0.5)).tolist() == [5, 4, 2, 0]
    for dtype in (torch.float16, torch.bfloat16):  # tell thousands of steps apart
        spikes = encode.latency(torch.tensor([0.5, 0.25], dtype=dtype), 5001)
        assert spikes.dtype == dtype
        assert decode.first_spike(spikes).tolist() == [2500, 3750]


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


@pytest.mark.parametrize("beta", [0.3, 1.2])
def test_receptive_fields_equal_those_of_the_paper(beta: float) -> None:
    n, low, high = 7, -2.0, 3.0
    x = torch.linspace(-3, 4, 29, dtype=torch.float64)
    got = encode.population(x, n, low=low, high=high, overlap=beta)
    width, expected = (high - low) / (beta * (n - 2)), []
    for i in range(1, n + 1):
        centre = low + (2 * i - 3) / 2 * (high - low) / (n - 2)
        expected.append([math.exp(-((v - centre) ** 2) / (2 * width**2)) for v in x.tolist()])
    torch.testing.assert_close(got.t().tolist(), expected, rtol=1e-12, atol=0)


def test_gradient_dtype_and_shape_of_fields_and_repetition() -> None:
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: encode.population(v, 5), x)
    assert encode.population(torch.rand(4, 2, 3).bfloat16(), 6).dtype == torch.bfloat16
    y = encode.repeat(x, 5)
    assert y.shape == (5, 3, 2)
    assert y.data_ptr() == x.data_ptr()
    assert bool((y == x).all())
    y.sum().backward()
    assert bool((x.grad == 5).all())


def test_nan_within_a_signal_is_no_change() -> None:
    x = torch.tensor([0.0, 1.0, torch.nan, torch.nan, 2.0])
    assert encode.delta(x, 1.0, dim=1)[:, 0].tolist() == [0, 1, 0, 0, 1]
    assert encode.delta(torch.tensor([torch.nan, 1.0]), 1.0, start=0.0, dim=1).sum() == 1


@settings(deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.integers(1, 8),
    st.none() | st.integers(-5, 5),
)
def test_reference_stays_within_the_threshold_of_the_signal(values, threshold, start) -> None:
    on, off = encode.delta(torch.tensor(values).double(), threshold, start=start, dim=1).unbind(1)
    reference = values[0] if start is None else start
    for value, up, down in zip(values, on.tolist(), off.tolist(), strict=True):
        assert up == (value - reference >= threshold)
        assert down == (reference - value >= threshold)
        reference = value if up or down else reference
        assert abs(value - reference) < threshold


def test_values_are_not_looked_at_where_there_are_none() -> None:
    x = torch.rand(3, 9, 2)

    def encoded(each: Tensor) -> Tensor:
        return encode.delta(each, 0.1)

    expected = torch.stack([encoded(each) for each in x])
    assert torch.equal(torch.func.vmap(encoded)(x), expected)
    assert torch.equal(make_fx(encoded)(x[1])(x[0]), expected[0])
    with FakeTensorMode():
        assert encoded(torch.rand(9, 2)).shape == (9, 2, 2)


def test_channels_are_in_dimension_dim() -> None:
    x = torch.randn(9, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    spikes = encode.delta(x, 0.5)
    assert spikes.shape == (9, 2, 2, 3, 4)
    for dim, moved in ((1, (9, 2, 2, 3, 4)), (4, (9, 2, 3, 4, 2)), (-1, (9, 2, 3, 4, 2))):
        other = encode.delta(x, 0.5, dim=dim)
        assert other.shape == moved
        assert torch.equal(other.movedim(dim, 2), spikes)
    assert encode.delta(x[:, :, 0, 0], 0.5).shape == (9, 2, 2)
    start = torch.full((2, 3, 4), 100.0)
    assert bool((encode.delta(x, 0.5, start=start)[0, :, 1] == 1).all())


@refusals(
    r"""
    rate(ONE.byte(), 3) -> TypeError: got torch.uint8. .* x.float\(\) / 255
    rate(ONE, 0) -> ValueError: steps must be at least 1, got 0
    rate(ONE, 3, kind="gauss") -> ValueError: or 'poisson', got 'gauss'
    rate(ONE, 3, gain=2.0) -> ValueError: lie in \[0, 1\], got 2.0. Scale the
    rate(ONE, 3, offset=-2.0) -> ValueError: lie in \[0, 1\], got -1.0
    rate(ONE / 0 * 0, 3) -> ValueError: lie in \[0, 1\], got nan
    rate(-ONE, 3, kind="poisson") -> ValueError: not be negative, got -1.0
    latency([0.5], 5) -> TypeError: floating-point tensor, got list
    latency(1.5 * ONE, 5) -> ValueError: x must lie in \[0, 1\], got 1.5
    latency(-ONE, 5, kind="exponential") -> ValueError: not be negative, got -1.0
    latency(ONE, 5, kind="log") -> ValueError: or 'exponential', got 'log'
    latency(ONE, 5, threshold=1.0) -> ValueError: in \[0, 1\) for kind='linear', got 1.0
    latency(ONE, 5, threshold=0.0, kind="exponential") -> ValueError: threshold must be positive
    latency(ONE, 5, tau=0.0, kind="exponential") -> ValueError: tau must be positive .* got 0.0
    population([1.0], 5) -> TypeError: floating-point tensor, got list
    population(ONE, 2) -> ValueError: at least 3 to tile .* got 2
    population(ONE, 5, low=1.0) -> ValueError: low must be below high, .* got 1.0 and 1.0
    population(ONE, 5, overlap=0.0) -> ValueError: overlap must be positive and finite, got 0.0
    repeat(ONE, 0) -> ValueError: steps must be at least 1, got 0
    delta([0.5], 1.0) -> TypeError: floating-point tensor, got list
    delta(torch.zeros(0, 2), 1.0) -> ValueError: at least one time step
    delta(ZEROS, 0.0) -> ValueError: threshold must be positive .* 0.0
    delta(torch.tensor([[nan], [1.0]]), 1.0) -> ValueError: x must begin with a number
    delta(torch.tensor([[0.0], [inf]]), 1.0) -> ValueError: and hold no infinity
    delta(ZEROS, 1.0, start=nan) -> ValueError: or start= be one
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, {**vars(encode), **globals()})
