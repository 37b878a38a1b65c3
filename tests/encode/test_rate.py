from __future__ import annotations

from typing import Any

import pytest
import torch

from tracetorch import encode

KINDS: Any = ("bernoulli", "poisson")


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


@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: encode.rate(x, 3),
        lambda x: encode.rate(x, 3, kind="poisson"),
        lambda x: encode.latency(x, 3),
        lambda x: encode.latency(x, 3, kind="exponential"),
        lambda x: encode.delta(x, 0.1),
        lambda x: encode.delta(x, 0.1, start=0.0),
        lambda x: encode.population(x, 3),
        lambda x: encode.repeat(x, 3),
    ],
)
def test_encoders_stay_on_the_device(encoder: Any) -> None:
    """The meta device, like a GPU, does not mix with the CPU."""
    assert encoder(torch.empty(2, 4, device="meta")).device.type == "meta"
