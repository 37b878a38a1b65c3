from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.refusals import check, refusals
from tracetorch.loss import soft_cross_entropy


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
    pred, target = probabilities(2, 3, 4), probabilities(2, 3, 4, seed=1)
    expected = [-(target[b] * (pred[b] + 1e-8).log()).sum().item() for b in range(2)]
    assert soft_cross_entropy(pred, target, reduction="none").tolist() == pytest.approx(expected)
    assert soft_cross_entropy(pred, target).item() == pytest.approx(sum(expected) / 2)
    x = probabilities(4, 3)
    each = torch.func.vmap(lambda p: soft_cross_entropy(p[None], p[None]))(x)
    torch.testing.assert_close(each, soft_cross_entropy(x, x, reduction="none"))


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


def test_empty_batches_one_dimension_and_non_contiguous_inputs() -> None:
    assert soft_cross_entropy(torch.ones(0, 3), torch.ones(0, 3), reduction="none").shape == (0,)
    one = soft_cross_entropy(torch.ones(2) / 2, torch.ones(2))
    assert one.item() == pytest.approx(math.log(2), rel=1e-6)
    pred, target = (probabilities(4, 3, 2, seed=s).transpose(1, 2) for s in (0, 1))
    assert not pred.is_contiguous()
    expected = soft_cross_entropy(pred.contiguous(), target.contiguous())
    torch.testing.assert_close(soft_cross_entropy(pred, target), expected)
