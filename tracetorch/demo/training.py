"""Train and evaluate the network: the recipe, a plain PyTorch loop, and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.utils.data import DataLoader, TensorDataset

import tracetorch
from tracetorch.data.digits import Digits
from tracetorch.demo.network import ConvSNN

_BATCH = 250  # digits that are classified at once: bounds the memory, changes no result


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a training run."""

    epochs: int = 12  # passes over the training digits
    batch_size: int = 50  # digits per optimizer step
    steps: int = 5  # T, for which each digit is shown
    lr: float = 1e-2  # the highest learning rate of the recipe


class Score(NamedTuple):
    """Accuracy and mean loss on a data set, as :func:`evaluate` returns them."""

    accuracy: float
    loss: float


class Epoch(NamedTuple):
    """Results of an epoch, numbered from 1: accuracy during training, and scores after it."""

    number: int
    train_accuracy: float
    validation: Score
    held_out: Score


def train(model: ConvSNN, digits: Digits, settings: Settings, seed: int) -> Iterator[Epoch]:
    """Train the model in place, and yield the results of every epoch.

    The seed is that of the order and the augmentation of the digits.
    """
    from tqdm import tqdm

    # a generator of its own, so that the order does not depend on how the model was initialised
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(digits.train, settings.batch_size, shuffle=True, generator=generator)
    few, total = digits.train[:200][0], settings.epochs * len(loader)
    optimizer, schedule = tracetorch.recipe(model, few, total, lr=settings.lr, steps=settings.steps)
    for number in range(1, settings.epochs + 1):
        model.train()
        correct = 0
        # disable=None: no bar where the output is not a terminal
        for images, labels in tqdm(loader, f"epoch {number}", leave=False, disable=None):
            images = augment(images, generator)
            readout = tracetorch.unroll(model, images, steps=settings.steps, from_rest=True)
            logits = readout.mean(0)  # over time: [T, B, 10] to [B, 10]
            loss = cross_entropy(logits, labels)

            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == labels).sum())

        yield Epoch(
            number,
            correct / len(digits.train),
            evaluate(model, digits.validation, settings.steps),
            evaluate(model, digits.held_out, settings.steps),
        )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images: shift, rotate and scale each at random, by 2 pixels, 12 degrees, 10 %.

    A small data set generalises better when no image is seen twice in the same place.
    """

    def uniform(limit: float, *shape: int) -> Tensor:
        return limit * (2 * torch.rand(len(images), *shape, generator=generator) - 1)

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    shift = uniform(4 / images.shape[-1], 2, 1)  # the grid spans 2, so 4 / 28 is 2 of 28 pixels
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
    grid = affine_grid(torch.cat([rotation, shift], 2), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def evaluate(model: ConvSNN, dataset: TensorDataset, steps: int) -> Score:
    """Classify every digit by the mean of its readout over time."""
    model.eval()
    correct, loss = 0, 0.0
    for images, labels in DataLoader(dataset, batch_size=_BATCH):
        logits = tracetorch.unroll(model, images, steps=steps, from_rest=True).mean(0)
        correct += int((logits.argmax(1) == labels).sum())
        loss += cross_entropy(logits, labels, reduction="sum").item()
    return Score(correct / len(dataset), loss / len(dataset))
