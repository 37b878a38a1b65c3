"""The Japanese Vowels data set: sequences of different lengths, from the package sktime."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.core.optional import require


class Sequences(Dataset[tuple[Tensor, Tensor]]):
    """A data set of sequences ``[T_i, ...]`` and their labels, for :func:`collate`.

    Args:
        sequences: N sequences.
        labels: ``[N]`` or ``[N, ...]``.

    Raises:
        ValueError: the numbers of sequences and labels differ.

    Example:
        >>> data = Sequences([torch.rand(5, 4), torch.rand(7, 4)], torch.tensor([0, 1]))
        >>> len(data), data[1][0].shape
        (2, torch.Size([7, 4]))
    """

    sequences: list[Tensor]
    labels: Tensor

    def __init__(self, sequences: list[Tensor], labels: Tensor) -> None:
        if len(sequences) != len(labels):
            raise ValueError(f"got {len(sequences)} sequences, but {len(labels)} labels.")
        self.sequences = sequences
        self.labels = labels

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        lengths = [len(sequence) for sequence in self.sequences] or [0]
        steps = "x".join(map(str, self.sequences[0].shape[1:])) if self.sequences else ""
        return (
            f"Sequences({len(self)} sequences of {min(lengths)} to {max(lengths)} steps of "
            f"[{steps}])"
        )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sequences[index], self.labels[index]


def japanese_vowels() -> tuple[Sequences, Sequences]:
    """Load Japanese Vowels: utterances of "ae" by nine speakers, 270 training and 370 held out.

    The task is to recognise the speaker. Each utterance has 7 to 29 frames of 12 cepstral
    coefficients, standardised by the mean and the standard deviation of the training frames. The
    files are part of the package sktime; nothing is downloaded.

    Shape:
        Sequences ``[T_i, 12]`` with labels from 0 to 8.

    Raises:
        ModuleNotFoundError: sktime is missing.

    Example:
        >>> train, held_out = japanese_vowels()
        >>> len(train), len(held_out), train[0][0].shape
        (270, 370, torch.Size([20, 12]))

    Reference:
        M. Kudo, J. Toyama and M. Shimbo, Multidimensional curve classification using
        passing-through regions, Pattern Recognition Letters 20 (1999).
    """
    require("sktime", extra="data", by="tt.data.japanese_vowels")
    return deepcopy(_standardised())


@cache  # sktime reads the files in a second
def _standardised() -> tuple[Sequences, Sequences]:
    from sktime.datasets import load_japanese_vowels

    parts = []
    for split in ("TRAIN", "TEST"):
        frames, speakers = load_japanese_vowels(split=split, return_type="df-list")
        sequences = [torch.tensor(frame.to_numpy(), dtype=torch.float64) for frame in frames]
        parts.append(Sequences(sequences, torch.tensor([int(s) - 1 for s in speakers])))
    train, held_out = parts
    # in float64, so that every machine has the same float32 values
    deviation, mean = torch.std_mean(torch.cat(train.sequences), 0)
    # by the training frames alone: held-out data must not influence what the network sees
    for part in (train, held_out):
        part.sequences = [((each - mean) / deviation).float() for each in part.sequences]
    return train, held_out
