from __future__ import annotations

import pytest
import torch

from tracetorch.core import checks
from tracetorch.data import Sequences, japanese_vowels, made_up_words


def test_utterances_are_ragged_and_standardised() -> None:
    train, held_out = japanese_vowels()
    assert (len(train), len(held_out)) == (270, 370)
    assert torch.bincount(train.labels).tolist() == [30] * 9
    assert torch.bincount(held_out.labels).min() >= 24
    lengths = {len(sequence) for sequence in train.sequences + held_out.sequences}
    assert (min(lengths), max(lengths)) == (7, 29)
    frames = torch.cat(train.sequences)
    assert frames.dtype == torch.float32
    assert torch.allclose(frames.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(frames.std(0), torch.ones(12), atol=1e-5)
    # the first frame of the first utterance, from the file: 1.860936 before it was standardised
    utterance, speaker = train[0]
    assert utterance.shape == (20, 12)
    assert utterance[0, 0].item() == pytest.approx((1.860936 - 0.8691055) / 0.48760, abs=2e-3)
    assert speaker == 0


def test_missing_sktime_and_a_wrong_number_of_labels_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"japanese_vowels needs sktime, .*\[data\]"):
        japanese_vowels()
    with pytest.raises(ValueError, match="got 1 sequences, but 2 labels"):
        Sequences([torch.ones(3)], torch.ones(2))


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
