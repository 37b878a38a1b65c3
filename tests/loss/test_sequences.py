"""Losses and regularisers on sequences: formulas, gradients, masks, invalid arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tracetorch as tt
from tests.cases import examples
from tests.ragged import masks, padded_with_nan, single_sequences
from tests.refusals import check, refusals
from tests.unrolling.models import dyadic, made
from tracetorch import loss, snn

T, B, C = 5, 4, 3
Loss = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_spikes(*shape: int, seed: int = 0) -> Tensor:
    x = normal(*shape, seed=seed)
    return (x > 0.4).double() - (x < -1.3).double()


def random_classes(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(0, C, (batch,), generator=torch.Generator().manual_seed(seed))


def without_target(function: Loss) -> Loss:
    return lambda x, target, **options: function(x, **options)


# Losses of an output [T, B, C] and a class for each sample.
CLASSIFICATION: dict[str, Loss] = {
    "rate_cross_entropy": loss.rate_cross_entropy,
    "count_cross_entropy": loss.count_cross_entropy,
    "membrane_cross_entropy": loss.membrane_cross_entropy,
    "first_spike_cross_entropy": loss.first_spike_cross_entropy,
    "temporal_cross_entropy": lambda *a, **k: loss.temporal_cross_entropy(*a, mse_weight=0.3, **k),
    "rate_mse": loss.rate_mse,
    "count_mse": loss.count_mse,
    "membrane_mse": loss.membrane_mse,
    "first_spike_mse": loss.first_spike_mse,
}
REGULARISERS: dict[str, Loss] = {
    "rate_bounds": lambda x, **k: loss.rate_bounds(x, 0.3, 0.5, **k),
    "silence": loss.silence,
    "spike_l1": loss.spike_l1,
    "spike_l2": loss.spike_l2,
}
ALL: dict[str, Loss] = {
    **CLASSIFICATION,
    **{name: without_target(function) for name, function in REGULARISERS.items()},
    "van_rossum": lambda x, target, **k: loss.van_rossum(
        x, random_spikes(*x.shape, seed=9).roll(int(target.sum()), -1), 3.0, **k
    ),
}


def test_every_public_loss_is_tested() -> None:
    assert {*ALL, "soft_cross_entropy"} == set(loss.__all__)


@pytest.mark.parametrize("name", ALL)
def test_mean_and_sum_reduce_the_losses_of_the_samples(name: str) -> None:
    x, target = random_spikes(T, B, C), random_classes(B)
    each = ALL[name](x, target, reduction="none")
    assert each.shape == (B,)
    assert bool((each >= 0).all())
    assert each.max() > 0
    torch.testing.assert_close(ALL[name](x, target), each.mean())
    torch.testing.assert_close(ALL[name](x, target, reduction="sum"), each.sum())
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none', got 'avg'"):
        ALL[name](x, target, reduction="avg")


@pytest.mark.parametrize("name", [n for n in ALL if n != "van_rossum"])
@examples(40)
@given(mask=masks(), smooth=st.booleans())
def test_masked_sequences_have_the_loss_of_unpadded_ones(name, mask, smooth) -> None:
    x = normal(*mask.shape, C) if smooth else random_spikes(*mask.shape, C)
    target = random_classes(mask.shape[1])
    whole = padded_with_nan(x, mask).requires_grad_()
    together = ALL[name](whole, target, mask=mask, reduction="none")
    (grad,) = torch.autograd.grad(together.sum(), whole)
    for b, own in enumerate(single_sequences(x, mask)):
        own.requires_grad_()
        expected = ALL[name](own, target[b : b + 1])
        torch.testing.assert_close(together[b], expected)
        (own_grad,) = torch.autograd.grad(expected, own)
        torch.testing.assert_close(grad[mask[:, b], b], own_grad[:, 0])
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


@pytest.mark.parametrize(
    ("function", "options"),
    [(loss.van_rossum, {"tau": 2.5}), (loss.membrane_mse, {}), (loss.temporal_cross_entropy, {})],
)
@examples(40)
@given(mask=masks())
def test_mask_covers_targets_over_time(function: Any, options: Any, mask: Tensor) -> None:
    x = random_spikes(*mask.shape, C)
    target = random_spikes(*mask.shape, C, seed=1)
    if function is loss.temporal_cross_entropy:
        target = target.abs().softmax(-1)
    padded = padded_with_nan(target, mask).requires_grad_()
    together = function(padded_with_nan(x, mask), padded, mask=mask, reduction="none", **options)
    (grad,) = torch.autograd.grad(together.sum(), padded)
    assert bool((grad[~mask] == 0).all())
    for b, (own, own_target) in enumerate(
        zip(single_sequences(x, mask), single_sequences(target, mask), strict=True)
    ):
        torch.testing.assert_close(together[b], function(own, own_target, **options))


@pytest.mark.parametrize("name", [n for n in ALL if "first_spike" not in n])
def test_gradients_match_finite_differences(name: str) -> None:
    x, target = normal(T, 2, C).requires_grad_(), random_classes(2)
    mask = torch.tensor([[True, True], [False, True], [True, False], [True, True], [True, False]])
    assert torch.autograd.gradcheck(lambda v: ALL[name](v, target, mask=mask), x)


@pytest.mark.parametrize("name", ["first_spike_cross_entropy", "first_spike_mse"])
def test_descent_on_first_spike_losses_makes_the_class_fire_first(name: str) -> None:
    """Gradient descent on spike probabilities makes the neuron of the class fire first."""
    drive = torch.zeros(6, 1, C, requires_grad=True)
    for _ in range(60):
        spikes = tt.functional.sigmoid_surrogate(1.0)(drive - 0.5)
        value = CLASSIFICATION[name](spikes, torch.tensor([1]))
        (grad,) = torch.autograd.grad(value, drive)
        drive = (drive - 0.5 * grad).detach().requires_grad_()
    times = tt.decode.first_spike(tt.functional.sigmoid_surrogate(1.0)(drive - 0.5))
    assert times.argmin(1).item() == 1
    assert times[0, 1] < 6


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ALL)
def test_in_half_precision_compiled_and_on_another_device(name: str) -> None:
    """Halves are computed in float32; the meta device, like a GPU, does not mix with the CPU."""
    function, x, target = ALL[name], random_spikes(T, B, C), random_classes(B)
    for dtype in (torch.float16, torch.bfloat16):
        value = function(x.to(dtype), target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(x.float(), target), rtol=1e-5, atol=1e-6)
    other, mask = random_spikes(T, B, C, seed=1), torch.arange(T)[:, None] < torch.arange(2, 6)
    rest: tuple[Any, ...] = (target,)
    if name == "van_rossum":
        function, rest = loss.van_rossum, (other, 3.0)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda v: function(v, *rest, mask=mask), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x), function(x, *rest, mask=mask))
    away, *rest_away, mask_away = (
        each.to("meta") if isinstance(each, Tensor) else each for each in (x, *rest, mask)
    )
    for covered in (None, mask_away):
        value = function(away, *rest_away, mask=covered, reduction="none")
        assert (value.device.type, value.shape) == ("meta", (B,))


# Formulas


def test_squared_errors_of_classes_and_of_values() -> None:
    x, target = random_spikes(T, B, C).abs(), random_classes(B)
    hot = F.one_hot(target, C).double()
    time = tt.decode.first_spike(x)
    levels: Any = {"correct": 0.7, "incorrect": 0.1}
    for value, expected in (
        (loss.rate_mse(x, target), F.mse_loss(x.mean(0), hot)),
        (loss.rate_mse(x, target, **levels), F.mse_loss(x.mean(0), 0.1 + 0.6 * hot)),
        (loss.rate_mse(x, hot), F.mse_loss(x.mean(0), hot)),
        (loss.count_mse(x, target), F.mse_loss(x.sum(0), T * hot)),
        (loss.count_mse(x, target, correct=4, incorrect=1), F.mse_loss(x.sum(0), 1 + 3 * hot)),
        (loss.count_mse(x, (2 * hot).long()), F.mse_loss(x.sum(0), 2 * hot)),
        (loss.membrane_mse(x, target), ((x - hot) ** 2).mean()),
        (loss.membrane_mse(x, target, **levels), ((x - 0.1 - 0.6 * hot) ** 2).mean()),
        (loss.membrane_mse(x, hot), ((x - hot) ** 2).mean()),
        (loss.membrane_mse(x, x.flip(0)), ((x - x.flip(0)) ** 2).mean()),
        (loss.first_spike_mse(x, target), F.mse_loss(time, T * (1 - hot))),
        (loss.first_spike_mse(x, target, correct=1, incorrect=3), F.mse_loss(time, 3 - 2 * hot)),
    ):
        torch.testing.assert_close(value, expected)
    x, target = normal(T, 2, C, 4, 4), random_classes(2 * 16).reshape(2, 4, 4)
    hot = F.one_hot(target, C).movedim(-1, 1).double()
    torch.testing.assert_close(loss.rate_mse(x, target), F.mse_loss(x.mean(0), hot))


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=70),
    st.randoms(use_true_random=False),
    st.floats(0.1, 100),
)
def test_van_rossum_equals_the_sum_over_pairs_of_spikes(fired, random, tau) -> None:
    other = [random.random() < 0.4 for _ in fired]
    one, two = (torch.tensor(each)[:, None].double() for each in (fired, other))
    times, others = ([t for t, on in enumerate(each) if on] for each in (fired, other))

    def overlap(a: list[int], b: list[int]) -> float:
        return sum(math.exp(-abs(s - u) / tau) for s in a for u in b)

    expected = overlap(times, times) / 2 + overlap(others, others) / 2 - overlap(times, others)
    silence = torch.zeros(30, 1).double()
    for ends in ((one, two), (torch.cat((one, silence)), torch.cat((two, silence)))):
        assert loss.van_rossum(*ends, tau).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_regularisers_equal_values_by_hand() -> None:
    x = torch.zeros(4, 2, 3)
    x[0, 0, 0] = x[1, 0, 0] = x[2, 0, 0] = 1  # rate 3/4; the other neurons are silent
    x[0, 1, 1] = -1  # rate 1/4
    assert loss.spike_l1(x, reduction="none").tolist() == pytest.approx([3 / 12, 1 / 12])
    assert loss.spike_l2(x, reduction="none").tolist() == pytest.approx([9 / 48, 1 / 48])
    assert loss.silence(x, reduction="none").tolist() == pytest.approx([2 / 3, 2 / 3])
    assert loss.silence(x, 3, reduction="none").tolist() == pytest.approx([6, 22 / 3])
    assert loss.silence(x, pooled=True, reduction="none").tolist() == pytest.approx([1 / 3])
    bounded = loss.rate_bounds(x, 0.25, 0.5, reduction="none")
    assert bounded.tolist() == pytest.approx([3 / 48, 2 / 48])
    # pooled rates are 3/8, 1/8, 0
    pooled = loss.rate_bounds(x, 0.25, 0.3, pooled=True, reduction="none")
    assert pooled.tolist() == pytest.approx([(0.075**2 + 0.125**2 + 0.25**2) / 3])
    mask = torch.tensor([[True, True]] * 2 + [[True, False]] * 2)
    pooled = loss.rate_bounds(x, 0.0, 0.1, pooled=True, mask=mask)  # 3/6, 1/6, 0
    assert pooled.item() == pytest.approx((0.4**2 + (1 / 15) ** 2) / 3)


def test_probabilities_are_not_looked_at_where_there_are_none() -> None:
    x, target = random_spikes(T, B, C), torch.full((B, C), 1 / C)

    def value(x: Tensor, target: Tensor) -> Tensor:
        return loss.rate_cross_entropy(x, target)

    assert torch.equal(make_fx(value)(x, target)(x, target), value(x, target))
    with FakeTensorMode():
        fake = torch.rand(B, C)
        assert value(torch.rand(T, B, C), fake).shape == ()
        assert loss.soft_cross_entropy(fake, fake).shape == ()


def test_gradients_at_silent_steps_have_the_right_sign() -> None:
    x = torch.zeros(3, 1, 1, requires_grad=True)
    for regulariser, sign in (
        (loss.silence, -1),
        (lambda v: loss.rate_bounds(v, 0.2), -1),
        (loss.spike_l1, 0),
        (loss.spike_l2, 0),
    ):
        (grad,) = torch.autograd.grad(regulariser(x), x)
        assert torch.equal(grad.sign(), torch.full_like(grad, sign))


@pytest.mark.parametrize("name", REGULARISERS)
def test_recordings_are_summed_over_layers(name: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(2, 8), snn.LIF(8), nn.Linear(8, 4), snn.BLIF(4))
    mask = torch.arange(6)[:, None] < torch.tensor([6, 2, 4])
    _, seen = tt.unroll(model, 3 * torch.randn(6, 3, 2), record="output")
    assert list(seen) == ["1.output", "3.output"]
    for options in ({}, {"mask": mask}, {"mask": mask, "reduction": "none"}):
        both = REGULARISERS[name](seen, **options)
        each = [REGULARISERS[name](layer, **options) for layer in seen.values()]
        torch.testing.assert_close(both, sum(each))
    named = {"block.hidden": seen["1.output"], "block.output": seen["3.output"]}
    assert torch.equal(REGULARISERS[name](named), REGULARISERS[name](seen))
    REGULARISERS[name](seen).backward()
    assert model[0].weight.grad.abs().sum() > 0


# Invalid arguments

X, Y = torch.zeros(T, B, C), torch.zeros(B, dtype=torch.long)


@pytest.mark.parametrize("name", ALL)
def test_output_or_mask_that_does_not_fit_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"mask must have the shape \[T, B\] of .* got \[5, 3\]"):
        ALL[name](X, Y, mask=torch.ones(T, C).bool())
    with pytest.raises(ValueError, match="at least one time step"):
        ALL[name](X[:0], Y)
    if "mse" not in name:
        with pytest.raises(ValueError, match=r"(needs an output|must have the shape) \[T, B, "):
            ALL[name](X[:, 0, 0], Y)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_target_that_does_not_fit_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match="name classes from 0 to 2, got 3"):
        CLASSIFICATION[name](X, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="name classes from 0 to 2, got -1"):
        CLASSIFICATION[name](X, Y - 1)
    for target in (torch.zeros(B), torch.zeros(B - 1).long(), torch.zeros(B, C + 1)):
        with pytest.raises(ValueError, match=r"target (must be of|for each step must)|for each"):
            CLASSIFICATION[name](X, target)
    for wrap in (np.asarray, Tensor.tolist):
        with pytest.raises(TypeError, match=r"target must be a tensor, got (ndarray|list)\. Wrap"):
            CLASSIFICATION[name](X, wrap(Y))


@refusals(
    r"""
    loss.membrane_cross_entropy(X, Y, over="max") -> ValueError: 'last', got 'max'
    loss.rate_cross_entropy(X, Y, scale=-1) -> ValueError: scale must be positive .* got -1
    loss.first_spike_cross_entropy(X, Y, tau=0) -> ValueError: tau must be positive .* got 0
    loss.van_rossum(X, X, math.inf) -> ValueError: tau must be positive and finite.* got inf
    loss.van_rossum(X, X.tolist(), 1) -> TypeError: target must be a tensor, got list
    loss.soft_cross_entropy(X, np.asarray(X)) -> TypeError: target must be a tensor, got ndarray
    loss.temporal_cross_entropy(X, torch.full((T, B), -100)) -> ValueError: 0 to 2, got -100
    loss.van_rossum(X, X[1:], 1) -> ValueError: one shape, got \[5, 4, 3\] and \[4
    loss.temporal_cross_entropy(X, Y, mse_weight=2) -> ValueError: mse_weight .* \[0, 1\], got 2
    loss.temporal_cross_entropy(X, torch.zeros(6, B).long()) -> ValueError: \[T, B\] = \[5, 4\], got
    loss.rate_cross_entropy(X, torch.zeros(B, C).long()) -> RuntimeError: Expected floating point
    loss.membrane_cross_entropy(X, torch.zeros(T, B).long()) -> ValueError: step \[T, B\] take tt
    loss.rate_cross_entropy(X[:, :, 0], Y) -> ValueError: output \[T, B, C, ...\] .* has shape \[4\]
    loss.membrane_mse(X, torch.zeros(T, B, C + 1)) -> ValueError: target must be of
    loss.rate_bounds(X, 0.5, 0.2) -> ValueError: lower <= upper, got 0.5 and 0.2
    loss.rate_bounds(X, -1.0) -> ValueError: lower <= upper, got -1.0 and 1.0
    loss.silence(X, 0) -> ValueError: minimum must be positive and finite, got 0
    loss.rate_cross_entropy(X, torch.full((B, C), -0.5)) -> ValueError: target .* got -0.5
    loss.rate_bounds({"1.output": X, "1.mem": X, "2": X}) -> ValueError: '1.mem' beside the output
    loss.spike_l1({"output": X, "mem": X}) -> ValueError: 'mem' beside .* record=\['\*\.output'\]
    loss.spike_l1({}) -> ValueError: empty mapping: record some layers
    loss.spike_l1({"a.output": [1]}) -> TypeError: a.output must be a tensor, got list
    loss.spike_l1({"a": X, "b": X[:, 1:]}) -> ValueError: one batch, got the shapes {'a': \[5, 4, 3
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, globals())


@pytest.mark.parametrize("name", ["dense", "recurrent"])
def test_losses_of_kernels_have_the_gradients_of_plain_loops(name: str) -> None:
    """Of the outputs and of recorded spikes and membranes at once."""
    results = []
    for backend in ("eager", "cpu"):
        model = made(name)
        with tt.fuse.backend(backend):
            y, seen = tt.unroll(model, dyadic(6, 4, 3), record=["output", "mem"])
            spikes = {path: each for path, each in seen.items() if path.endswith("output")}
            membranes = {path: each for path, each in seen.items() if path.endswith("mem")}
            total = loss.membrane_cross_entropy(y, torch.tensor([0, 1, 1, 0]))
            total = total + loss.rate_bounds(spikes, 0.2, 0.4)
            total = total + loss.spike_l2(spikes) + loss.spike_l2(membranes)
            total.backward()
        results.append({"loss": total.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    assert all(bool(each.any()) for each in results[0].values())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "measure", [tt.loss.membrane_cross_entropy, tt.loss.rate_mse, tt.metrics.accuracy]
)
def test_a_batch_that_comes_first_is_told_where_time_goes(measure: Any) -> None:
    y, target = torch.rand(32, 20, 2), torch.arange(32) % 2  # [B, T, C]
    advice = r"\[B, T, \.\.\.\].* x\.movedim\(1, 0\)\. A still image.* tt\.unroll\(model, x, steps="
    with pytest.raises(ValueError, match=advice):
        measure(y, target)
    measure(y.movedim(1, 0), target)
    images = torch.rand(8, 1, 3, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))
    with pytest.raises(ValueError, match=advice):
        measure(tt.unroll(net, images, from_rest=True), target[:8])
    measure(tt.unroll(net, images, steps=3, from_rest=True), target[:8])
