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
    assert metrics.accuracy(torch.eye(3).bool()[None], torch.tensor([0, 1, 1]), by="last") > 0.6


@pytest.mark.parametrize("by", BY)
def test_samples_without_spikes_or_with_nan_count_as_wrong(by: Any) -> None:
    assert metrics.accuracy(torch.zeros(4, 3, 2), torch.tensor([0, 1, 0]), by=by) == 0
    x = torch.eye(3).repeat(4, 1, 1)
    x[3, 0, 1] = torch.nan
    assert metrics.accuracy(x, torch.arange(3), by="count") == pytest.approx(2 / 3)
    x[:] = torch.nan
    assert metrics.accuracy(x, torch.zeros(3, dtype=torch.long), by=by) == 0
