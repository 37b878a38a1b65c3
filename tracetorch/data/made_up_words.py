"""Made-up words in spikes of a simulated cochlea: five, and each of them backwards."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from tracetorch.core.checks import check_count

CHANNELS, STEPS, WORDS, RIDGES = 40, 50, 5, 3
WIDTH = 1.5  # of a ridge, in channels


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
    draw = torch.Generator().manual_seed(0)  # the vocabulary is always the same
    first, last = CHANNELS * torch.rand(2, WORDS, RIDGES, generator=draw)
    onset = 0.5 * torch.rand(WORDS, RIDGES, generator=draw)
    length = 0.25 + 0.25 * torch.rand(WORDS, RIDGES, generator=draw)
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(2 * WORDS, (number,), generator=draw)
    tempo = 0.8 + 0.4 * torch.rand(number, 1, generator=draw)
    start = 0.15 * torch.rand(number, 1, generator=draw)
    pitch = 2.5 * torch.randn(number, 1, 1, generator=draw)
    pitch = pitch + 1.5 * torch.randn(number, 1, RIDGES, generator=draw)
    progress = (torch.arange(STEPS) / STEPS - start) / tempo
    progress = torch.where(label[:, None] % 2 == 1, 1 - progress, progress)
    word = label // 2
    along = (progress[:, :, None] - onset[word][:, None]) / length[word][:, None]
    channel = first[word][:, None] + (last - first)[word][:, None] * along + pitch
    distance = (torch.arange(CHANNELS) - channel[..., None]) / WIDTH
    ridges = (-0.5 * distance.square()).exp() * ((along > 0) & (along < 1))[..., None]
    rate = (0.02 + 0.35 * ridges.sum(2)).clamp(max=0.9)
    return TensorDataset((torch.rand(rate.shape, generator=draw) < rate).float(), label)
