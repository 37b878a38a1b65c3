from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.demo.cases import DIGITS, bars
from tracetorch.demo.network import ConvSNN
from tracetorch.demo.training import Epoch, Score, Settings, augment, evaluate, train

SETTINGS = Settings(epochs=10, batch_size=10, steps=2, lr=1e-2)


def trained(seed: int) -> tuple[Any, list[Epoch]]:
    torch.manual_seed(seed)
    model = ConvSNN()
    return model, list(train(model, DIGITS, SETTINGS, seed))


def test_training_learns_and_is_reproducible() -> None:
    model, epochs = trained(0)
    assert [epoch.number for epoch in epochs] == [*range(1, 11)]
    assert epochs[-1].train_accuracy > epochs[0].train_accuracy
    assert epochs[-1].held_out.accuracy > 0.8
    assert epochs[-1].validation == evaluate(model, DIGITS.validation, SETTINGS.steps)
    assert epochs[-1].held_out == evaluate(model, DIGITS.held_out, SETTINGS.steps)

    again, _ = trained(0)
    other, _ = trained(1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(model.conv1[0].weight, other.conv1[0].weight)


@pytest.mark.parametrize("batch_size", [60, 1000])
def test_training_with_a_single_step(batch_size: int) -> None:
    settings = Settings(epochs=1, batch_size=batch_size, steps=1)
    model: Any = ConvSNN()
    before = model.conv1[0].weight.clone()
    assert len(list(train(model, DIGITS, settings, 0))) == 1
    assert not torch.equal(before, model.conv1[0].weight)


class PerfectButOne(ConvSNN):
    """A perfect classifier of the bars, except for class 3."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, 0, 4:24:2, 10]
        return logits * (torch.arange(10) != 3)


def test_evaluate_averages_over_all_digits() -> None:
    score = evaluate(PerfectButOne(), bars(300), steps=2)
    # softmax of one 1 among nine 0, and for class 3 of ten 0
    loss = 0.9 * (math.log(math.e + 9) - 1) + 0.1 * math.log(10)
    assert score == pytest.approx(Score(0.9, loss))


def test_augmentation_shifts_rotates_and_scales_a_little() -> None:
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 13:15, 13:15] = 1.0
    augmented = augment(images, torch.Generator().manual_seed(0))
    assert augmented.shape == images.shape
    assert torch.equal(augmented, augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(augmented, augment(images, torch.Generator().manual_seed(1)))

    places = torch.arange(28.0)
    mass = augmented.sum((1, 2, 3))
    for dim in (2, 3):
        centre = (augmented.sum((1, 5 - dim)) * places).sum(1) / mass
        assert (centre - 13.5).abs().max() < 2.5
        assert (centre - 13.5).abs().max() > 1.0
        assert centre.std() > 0.5
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 13:15, 4:24] = 1.0
    augmented = augment(images, torch.Generator().manual_seed(0))[:, 0]
    length = (augmented.amax(1) > 0.5).sum(1)
    assert length.float().std() > 0.5
    assert ((length - 20).abs() <= 4).all()
    left, right = augmented[:, :, 8].argmax(1), augmented[:, :, 19].argmax(1)
    assert (left > right).any()
    assert (left < right).any()
