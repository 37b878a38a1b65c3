"""Sequences to learn on: Japanese Vowels, from the package sktime, and made-up words in spikes."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from tracetorch.core.checks import check_count, require

CHANNELS, STEPS, WORDS, RIDGES = 40, 50, 5, 3
WIDTH = 1.5  # of a ridge, in channels


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


def made_up_words(number: int, seed: int) -> TensorDataset:
    """Draw made-up words in spikes of a simulated cochlea: five, and each of them backwards.

    A word is three ridges that move through 40 channels; speakers differ in pitch, tempo and onset,
    and spikes are drawn at random. Backwards a word has the same channels, so that rates alone
    cannot tell. The five words are always the same; nothing is downloaded.

    Args:
        number: of words to draw; at least 1.
        seed: of what is drawn; other words for training and for testing by other seeds.

    Shape:
        Spikes ``[number, 50, 40]`` and classes ``[number]`` from 0 to 9, odd ones backwards.

    Raises:
        TypeError: ``number`` is not an integer.
        ValueError: ``number`` is less than 1.

    Example:
        >>> spikes, labels = made_up_words(8, seed=1).tensors
        >>> spikes.shape, labels.shape
        (torch.Size([8, 50, 40]), torch.Size([8]))
    """
    number = check_count("number", number)
    vocabulary = torch.Generator().manual_seed(0)  # which is always the same
    draw = torch.Generator().manual_seed(seed)
    # whatever the default dtype is: another one would draw other words
    uniform, normal = (partial(each, dtype=torch.float32) for each in (torch.rand, torch.randn))
    first, last = CHANNELS * uniform(2, WORDS, RIDGES, generator=vocabulary)
    onset = 0.5 * uniform(WORDS, RIDGES, generator=vocabulary)
    length = 0.25 + 0.25 * uniform(WORDS, RIDGES, generator=vocabulary)
    label = torch.randint(2 * WORDS, (number,), generator=draw)
    tempo = 0.8 + 0.4 * uniform(number, 1, generator=draw)
    start = 0.15 * uniform(number, 1, generator=draw)
    pitch = 2.5 * normal(number, 1, 1, generator=draw)
    pitch = pitch + 1.5 * normal(number, 1, RIDGES, generator=draw)
    progress = (torch.arange(STEPS, dtype=torch.float32) / STEPS - start) / tempo
    progress = torch.where(label[:, None] % 2 == 1, 1 - progress, progress)
    word = label // 2
    along = (progress[:, :, None] - onset[word][:, None]) / length[word][:, None]
    channel = first[word][:, None] + (last - first)[word][:, None] * along + pitch
    distance = (torch.arange(CHANNELS) - channel[..., None]) / WIDTH
    ridges = (-0.5 * distance.square()).exp() * ((along > 0) & (along < 1))[..., None]
    rate = (0.02 + 0.35 * ridges.sum(2)).clamp(max=0.9)
    return TensorDataset((uniform(rate.shape, generator=draw) < rate).float(), label)
