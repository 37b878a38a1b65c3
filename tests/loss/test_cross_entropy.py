"""Class weights and label smoothing, beside PyTorch's own; cross entropy of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.refusals import check, refusals
from tracetorch import decode, loss
from tracetorch.loss import soft_cross_entropy

T, B, C = 6, 5, 4
WEIGHT = torch.tensor([0.2, 3.0, 0.0, 1.5], dtype=torch.float64)
FOUR: Any = torch.tensor(4.0)
# each loss, and the logits whose cross entropy it is
LOGITS: list[tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = [
    (partial(loss.rate_cross_entropy, scale=FOUR), lambda x: 4 * x.mean(0)),
    (loss.count_cross_entropy, lambda x: x.sum(0)),
    (loss.membrane_cross_entropy, lambda x: x.mean(0)),
    (partial(loss.membrane_cross_entropy, over="maximum"), decode.maximum),
    (partial(loss.membrane_cross_entropy, over="last"), lambda x: x[-1]),
    (partial(loss.first_spike_cross_entropy, tau=2.0), lambda x: -decode.first_spike(x) / 2),
]
SMOOTH: dict[str, Any] = {"label_smoothing": 0.3}
OPTIONS: list[dict[str, Any]] = [{}, SMOOTH, {"weight": WEIGHT}, {"weight": WEIGHT, **SMOOTH}]


def output(*shape: int) -> Tensor:
    draws = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (draws > 0.5).double()


def classes(*shape: int) -> Tensor:
    drawn = torch.randint(0, C, shape, generator=torch.Generator().manual_seed(4))
    return drawn.masked_fill(drawn == 2, 1)  # class 2 has the weight 0, and may be all of a batch


@pytest.mark.parametrize(("function", "logits"), LOGITS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_smoothing_are_those_of_pytorch(function, logits, options, reduction) -> None:
    for target in (classes(B), output(B, C).softmax(1)):
        x = output(T, B, C).requires_grad_()
        ours = function(x, target, reduction=reduction, **options)
        theirs = F.cross_entropy(logits(x), target, reduction=reduction, **options)
        torch.testing.assert_close(ours, theirs)
        mine, other = (torch.autograd.grad(each.sum(), x) for each in (ours, theirs))
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("mse_weight", [0.0, 0.25])
def test_the_temporal_loss_weights_every_real_step(
    options, reduction, per_step, mse_weight
) -> None:
    """Of the classes of padding nothing is read."""
    x, lengths = output(T, B, C), torch.tensor([6, 4, 1, 5, 2])
    mask = torch.arange(T)[:, None] < lengths
    target = classes(T, B).where(mask, torch.tensor(-100)) if per_step else classes(B)
    given = {"mask": mask, "mse_weight": mse_weight, "reduction": reduction, **options}
    ours = loss.temporal_cross_entropy(x, target, level=1.5, **given)
    weight = options.get("weight")
    losses, shares, near = [], [], []
    for b, length in enumerate(lengths):
        own = target[:length, b] if per_step else target[b].expand(length)
        steps = F.cross_entropy(x[:length, b], own, reduction="none", **options)
        losses.append(steps.mean())
        shares.append(torch.ones(()).double() if weight is None else weight[own].mean())
        near.append((x[:length, b] - 1.5).square().mean())
    entropy, square = torch.stack(losses), torch.stack(near)
    if reduction == "mean":
        entropy, square = entropy.sum() / torch.stack(shares).sum(), square.mean()
    elif reduction == "sum":
        entropy, square = entropy.sum(), square.sum()
    torch.testing.assert_close(ours, (1 - mse_weight) * entropy + mse_weight * square)


def test_targets_with_places_are_weighted_at_each_and_weights_take_the_dtype() -> None:
    x, target = output(T, B, C, 3, 2), classes(B, 3, 2)
    given: dict[str, Any] = {"weight": WEIGHT, "label_smoothing": 0.1}
    ours = loss.rate_cross_entropy(x, target, **given)
    torch.testing.assert_close(ours, F.cross_entropy(x.mean(0), target, **given))
    ours = loss.temporal_cross_entropy(x, target)
    expected = F.cross_entropy(x.flatten(0, 1), target.repeat(T, 1, 1))
    torch.testing.assert_close(ours, expected)
    single = loss.count_cross_entropy(output(T, B, C).float(), classes(B), weight=WEIGHT)
    assert single.dtype == torch.float32


@refusals(
    r"""
    weight=torch.ones(C + 1) -> RuntimeError: weight tensor should be defined
    weight=torch.ones(C, 1) -> RuntimeError: weight tensor should be defined
    weight=-torch.ones(C) -> ValueError: weight must be finite and not negative
    weight=torch.full((C,), torch.nan) -> ValueError: weight must be finite and not neg
    label_smoothing=1.5 -> ValueError: label_smoothing must lie in \[0, 1\], got 1.5
    label_smoothing="0.1" -> TypeError: label_smoothing must be a number, got '0.1'
    """
)
@pytest.mark.parametrize("function", [loss.temporal_cross_entropy, *(f for f, _ in LOGITS[:2])])
def test_bad_weights_and_smoothing_are_refused(function: Any, call: str, error: str) -> None:
    names = {**globals(), "function": function}
    check(f"function(output(T, B, C), classes(B), {call})", error, names)


def probabilities(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_pytorch_on_class_probabilities(reduction: Any) -> None:
    pred, target = probabilities(6, 5), probabilities(6, 5, seed=1)
    expected = F.cross_entropy(pred.log(), target, reduction=reduction)
    found = soft_cross_entropy(pred, target, 1e-15, reduction)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_sums_over_all_dimensions_but_the_first_in_transforms_too() -> None:
    pred, target = (probabilities(2, 4, 3, seed=seed).transpose(1, 2) for seed in (0, 1))
    expected = [-(target[b] * (pred[b] + 1e-8).log()).sum().item() for b in range(2)]
    assert soft_cross_entropy(pred, target, reduction="none").tolist() == pytest.approx(expected)
    assert soft_cross_entropy(pred, target).item() == pytest.approx(sum(expected) / 2)
    x = probabilities(4, 3)
    each = torch.func.vmap(lambda p: soft_cross_entropy(p[None], p[None]))(x)
    torch.testing.assert_close(each, soft_cross_entropy(x, x, reduction="none"))
    assert soft_cross_entropy(torch.ones(0, 3), torch.ones(0, 3), reduction="none").shape == (0,)
    one = soft_cross_entropy(torch.ones(2) / 2, torch.ones(2))
    assert one.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probability_of_zero_has_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    pred = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
    loss = soft_cross_entropy(pred, torch.tensor([[1.0, 0.0]], dtype=dtype))
    assert loss.dtype == dtype
    assert math.isfinite(loss.item())
    if dtype != torch.float16:  # 1 / eps is beyond float16
        loss.backward()
        assert pred.grad[0, 0] < -1e6


ONE, TWO = torch.ones(1), torch.ones(1, 2)


@refusals(
    r"""
    soft_cross_entropy(TWO, torch.ones(1, 3)) -> ValueError: one shape, got \[1, 2\] and \[1, 3\]
    soft_cross_entropy(TWO.T, torch.ones(2)) -> ValueError: one shape, got \[2, 1\] and \[2\]
    soft_cross_entropy(2.5 * ONE, ONE) -> ValueError: pred must be .*, got 2.5. Of logits
    soft_cross_entropy(ONE, -0.5 * ONE) -> ValueError: target must be .* from 0 to 1, got -0
    soft_cross_entropy(TWO, TWO, 0.0) -> ValueError: eps must be positive .* got 0.0
    soft_cross_entropy(TWO, TWO, "a") -> TypeError: eps must be a number, got 'a'
    soft_cross_entropy(TWO, TWO, 1e-8, "avg") -> ValueError: 'none', got 'avg'
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, globals())
