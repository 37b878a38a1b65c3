"""Class weights and label smoothing of the cross entropies, beside PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.refusals import check, refusals
from tracetorch import decode, loss

T, B, C = 6, 5, 4
WEIGHT = torch.tensor([0.2, 3.0, 0.0, 1.5], dtype=torch.float64)
LOGITS: list[tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = [
    (loss.rate_cross_entropy, decode.rate),
    (loss.count_cross_entropy, decode.count),
    (loss.membrane_cross_entropy, decode.rate),
    (loss.first_spike_cross_entropy, lambda x: -decode.first_spike(x)),
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
@pytest.mark.parametrize("probabilities", [False, True])
def test_weights_and_smoothing_are_those_of_pytorch(
    function, logits, options, reduction, probabilities
) -> None:
    x = output(T, B, C).requires_grad_()
    target = output(B, C).softmax(1) if probabilities else classes(B)
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
    x, target = output(T, B, C), classes(T, B) if per_step else classes(B)
    lengths = torch.tensor([6, 4, 1, 5, 2])
    mask = torch.arange(T)[:, None] < lengths
    given = {"mask": mask, "mse_weight": mse_weight, "reduction": reduction, **options}
    ours = loss.temporal_cross_entropy(x, target, **given)
    weight = options.get("weight")
    losses, shares, near = [], [], []
    for b, length in enumerate(lengths):
        own = target[:length, b] if per_step else target[b].expand(length)
        steps = F.cross_entropy(x[:length, b], own, reduction="none", **options)
        losses.append(steps.mean())
        shares.append(torch.ones(()).double() if weight is None else weight[own].mean())
        near.append((x[:length, b] - 1).square().mean())
    entropy, square = torch.stack(losses), torch.stack(near)
    if reduction == "mean":
        entropy, square = entropy.sum() / torch.stack(shares).sum(), square.mean()
    elif reduction == "sum":
        entropy, square = entropy.sum(), square.sum()
    torch.testing.assert_close(ours, (1 - mse_weight) * entropy + mse_weight * square)


def test_targets_with_places_are_weighted_at_each_and_weights_take_the_dtype() -> None:
    x, target = output(T, B, C, 3, 2), classes(B, 3, 2)
    ours = loss.rate_cross_entropy(x, target, weight=WEIGHT, label_smoothing=0.1)
    theirs = F.cross_entropy(decode.rate(x), target, WEIGHT, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)  # every sample has as many places
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
@pytest.mark.parametrize("function", [loss.temporal_cross_entropy, *(f for f, _ in LOGITS)])
def test_bad_weights_and_smoothing_are_refused(function: Any, call: str, error: str) -> None:
    names = {**globals(), "function": function}
    check(f"function(output(T, B, C), classes(B), {call})", error, names)
