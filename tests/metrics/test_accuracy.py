from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tracetorch import metrics

BY = ("rate", "count", "first_spike", "last", "maximum")


def outputs(T: int = 9, B: int = 40, C: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(T, B, C, generator=generator)
    mask = torch.arange(T)[:, None] < torch.randint(1, T + 1, (B,), generator=generator)
    return x, torch.randint(C, (B,), generator=generator), mask


@pytest.mark.parametrize("by", BY)
def test_accuracy_equals_that_of_torchmetrics_on_decoded_scores(by: Any) -> None:
    functional = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed"
    )
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


def test_accuracy_of_hand_made_spikes() -> None:
    early = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert metrics.accuracy(early, zero, by="rate") == 1
    assert metrics.accuracy(early, one, by="first_spike") == 1
    assert metrics.accuracy(early, zero, by="last") == 1
    padded = torch.tensor([[True], [False], [False]])
    assert metrics.accuracy(early, one, by="last", mask=padded) == 1


@pytest.mark.parametrize("by", BY)
def test_samples_without_spikes_count_as_wrong(by: Any) -> None:
    assert metrics.accuracy(torch.zeros(4, 3, 2), torch.tensor([0, 1, 0]), by=by) == 0


@pytest.mark.parametrize("by", BY)
def test_samples_with_nan_count_as_wrong(by: Any) -> None:
    x = torch.eye(3).repeat(4, 1, 1)
    x[3, 0, 1] = torch.nan
    assert metrics.accuracy(x, torch.arange(3), by="count") == pytest.approx(2 / 3)
    x[:] = torch.nan
    assert metrics.accuracy(x, torch.zeros(3, dtype=torch.long), by=by) == 0


def test_last_takes_boolean_spikes() -> None:
    assert metrics.accuracy(torch.eye(3).bool()[None], torch.tensor([0, 1, 1]), by="last") > 0.6


def test_accuracy_errors() -> None:
    x, target, _ = outputs()
    with pytest.raises(ValueError, match=r"x has no sample: its shape is \[\d+, 0, 5\]"):
        metrics.accuracy(x[:, :0], target[:0])
    with pytest.raises(TypeError, match=r"the classes, got list\. Wrap it: torch\.as_tensor"):
        metrics.accuracy(x, target.tolist())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="by must be one of rate, count, first_spike, last, maxim"):
        metrics.accuracy(x, target, by="rates")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="of integers, the classes, got a tensor of"):
        metrics.accuracy(x, target.float())
    with pytest.raises(ValueError, match=r"x \[T, B, C\] and target \[B\], got \[9, 40, 5\] and"):
        metrics.accuracy(x, target[:3])
    with pytest.raises(ValueError, match="target has the classes 0 to 9, the output has 5 neu"):
        metrics.accuracy(x, torch.arange(40) % 10)
    with pytest.raises(TypeError, match="spikes must be a tensor, got list"):
        metrics.accuracy([1.0], target)  # type: ignore[arg-type]
