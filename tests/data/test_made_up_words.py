from __future__ import annotations

import pytest
import torch

from tracetorch.data import made_up_words


def test_words_are_drawn_from_their_seed_alone() -> None:
    torch.manual_seed(0)
    spikes, labels = made_up_words(300, seed=1).tensors
    torch.manual_seed(5)
    again, same = made_up_words(300, seed=1).tensors
    assert torch.equal(spikes, again)
    assert torch.equal(labels, same)
    assert not torch.equal(spikes, made_up_words(300, seed=2).tensors[0])
    assert spikes.shape == (300, 50, 40)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert set(labels.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="number"):
        made_up_words(0, seed=1)


def test_a_word_backwards_has_the_same_channels_at_other_times() -> None:
    spikes, labels = made_up_words(2000, seed=3).tensors
    forwards, backwards = (spikes[labels == label].mean(0) for label in (0, 1))

    def similar(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])

    assert similar(forwards.mean(0), backwards.mean(0)) > 0.9
    assert similar(forwards, backwards) < similar(forwards, backwards.flip(0))
