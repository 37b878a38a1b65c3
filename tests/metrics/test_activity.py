from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tracetorch as tt
from tests.refusals import check, refusals
from tracetorch import metrics, snn

BY = ("rate", "count", "first_spike", "last", "maximum")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
def test_rates_count_nonzero_values_of_real_steps(T: int, B: int, N: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.randint(-1, 2, (T, B, N), generator=generator) * 0.5
    mask = torch.randint(2, (T, B), generator=generator).bool()
    mask[0] = True
    for real in (None, mask):
        kept = [spikes[t, b] for t in range(T) for b in range(B) if real is None or real[t, b]]
        flat = torch.stack(kept)
        rate = metrics.firing_rate(spikes, mask=real)
        torch.testing.assert_close(rate, (flat != 0).float().mean())
        torch.testing.assert_close(metrics.sparsity(spikes, mask=real), (flat == 0).float().mean())
        per = metrics.firing_rate(spikes, dim=-1, mask=real)
        torch.testing.assert_close(per, (flat != 0).float().mean(0))
        torch.testing.assert_close(metrics.dead(spikes, mask=real), (flat == 0).all(0))
        often = metrics.saturated(spikes, above=1.0, mask=real)
        torch.testing.assert_close(often, (flat != 0).all(0))


def test_in_a_convolution_a_neuron_is_a_channel_and_padding_may_hold_nan() -> None:
    layer = snn.LIF(3, dim=-3)
    x = torch.zeros(10, 2, 3, 4, 4)
    x[:, :, 1, 2, 2] = 5.0
    x[:, :, 2] = 5.0
    spikes = tt.unroll(layer, x)
    for dim in (-3, 1):
        assert metrics.dead(spikes, dim=dim).tolist() == [True, False, False]
        assert metrics.saturated(spikes, dim=dim).tolist() == [False, False, True]
    assert metrics.firing_rate(spikes, dim=-3)[1] == 1 / 16
    spikes = torch.ones(4, 2, 3)
    spikes[2:, 1] = torch.nan
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0]]).bool()
    assert metrics.firing_rate(spikes, mask=mask) == 1
    assert metrics.saturated(spikes, mask=mask).all()


@pytest.mark.parametrize("dim", [0, 1, 2, -3, -2, -1])
def test_dim_counts_the_dimensions_of_one_step(dim: int) -> None:
    spikes = (torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 7 == 0).float()
    kept = dim + 1 if dim >= 0 else dim + 4
    expected = spikes.movedim(kept, 0).flatten(1).mean(1)
    torch.testing.assert_close(metrics.firing_rate(spikes, dim=dim), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nan_is_neither_a_spike_nor_silence(dtype: torch.dtype) -> None:
    spikes = torch.tensor([[[1.0, 0.0, torch.nan]], [[1.0, 0.0, 1.0]]], dtype=dtype)
    assert metrics.firing_rate(spikes).isnan()
    assert metrics.sparsity(spikes).isnan()
    assert metrics.firing_rate(spikes, dim=-1)[:2].tolist() == [1.0, 0.0]
    assert metrics.firing_rate(spikes, dim=-1)[2].isnan()
    assert metrics.dead(spikes).tolist() == [False, True, False]
    assert metrics.saturated(spikes).tolist() == [True, False, False]
    net = torch.nn.Sequential(torch.nn.ReLU(), snn.LIF(3))
    assert math.isnan(metrics.activation_sparsity(net, spikes.float()))


def outputs(T: int = 9, B: int = 40, C: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(T, B, C, generator=generator)
    mask = torch.arange(T)[:, None] < torch.randint(1, T + 1, (B,), generator=generator)
    return x, torch.randint(C, (B,), generator=generator), mask


@pytest.mark.parametrize("by", BY)
def test_accuracy_equals_that_of_torchmetrics_on_decoded_scores(by: Any) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    x, target, mask = outputs()
    if by == "first_spike":
        x = (x > 0.7).float() * 1.0
    for real in (None, mask):
        scores = getattr(tt.decode, by)(x, mask=real)
        predicted = scores.argmin(1) if by == "first_spike" else scores.argmax(1)
        decided = (scores != scores[:, :1]).any(1)
        wanted = functional.multiclass_accuracy(
            torch.where(decided, predicted, (target + 1) % 5), target, 5, average="micro"
        )
        found = metrics.accuracy(x, target, by=by, mask=real)
        assert 0 < found < 1
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("by", BY)
def test_samples_without_spikes_or_with_nan_count_as_wrong(by: Any) -> None:
    assert metrics.accuracy(torch.zeros(4, 3, 2), torch.tensor([0, 1, 0]), by=by) == 0
    x = torch.eye(3).repeat(4, 1, 1)
    x[3, 0, 1] = torch.nan
    assert metrics.accuracy(x, torch.arange(3), by="count") == pytest.approx(2 / 3)
    booleans = torch.eye(3).bool()[None]
    assert metrics.accuracy(booleans, torch.tensor([0, 1, 1]), by="last") == pytest.approx(2 / 3)
    x[:] = torch.nan
    assert metrics.accuracy(x, torch.zeros(3, dtype=torch.long), by=by) == 0


X, CLASSES = torch.rand(9, 40, 5), torch.arange(40) % 5
SPIKES, STEPS = torch.ones(4, 2, 3), torch.ones(2, 1, 3)
DENSE, LIF = torch.nn.Linear(3, 3), snn.LIF(3)


@refusals(r"""
    accuracy(X[:, :0], CLASSES[:0]) -> ValueError: x has no sample: its shape is
    accuracy(X, CLASSES.tolist()) -> TypeError: got list\. Wrap it: torch\.as_tenso
    accuracy(X, CLASSES, by="mean") -> ValueError: must be 'rate' for the mean over time
    accuracy(X, CLASSES.float()) -> TypeError: of integers, the classes, got a tenso
    accuracy(X, CLASSES[:3]) -> ValueError: target \[B\], got \[9, 40, 5\] and \[3
    accuracy(X, CLASSES * 2) -> ValueError: target has the classes 0 to 8, the outpu
    accuracy([1.0], CLASSES) -> TypeError: spikes must be a tensor, got list
    firing_rate(SPIKES[:, :0]) -> ValueError: spikes has no sample: .* \[4, 0, 3\]
    dead(SPIKES, dim=2) -> ValueError: dim is 2, but one step of spikes has the shap
    saturated(SPIKES, above=-0.1) -> ValueError: above must lie in \[0, 1\]
    saturated(SPIKES, above="x") -> TypeError: above must be a number, got 'x'
    firing_rate(SPIKES, dim=1.0) -> TypeError: dim must be an integer
    firing_rate(SPIKES, mask=torch.ones(3, 2).bool()) -> ValueError: the shape \[T, B\] of spikes
    EnergyAssumptions(ac_pj=-1.0) -> ValueError: ac_pj must be finite and not negati
    EnergyAssumptions(update_pj="1") -> TypeError: a number of picojoules, got '1'
    membrane_updates(DENSE, STEPS) -> ValueError: Linear has no neuron layer
    activation_sparsity(DENSE, STEPS) -> ValueError: no activation: no neuron that s
    connection_sparsity(LIF) -> ValueError: LIF has no connections: no linear, convo
    profile(LIF, STEPS[:, :0]) -> ValueError: x has no sample
    profile(LIF, STEPS, mask=torch.ones(1, 2).bool()) -> ValueError: the shape \[T, B\] of x
""")
def test_wrong_arguments_are_refused(call: str, error: str) -> None:
    check(call, error, {**vars(metrics), **globals()})
