from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

import tracetorch as tt
from tests.refusals import check, refusals
from tracetorch.core import checks
from tracetorch.data import Sequences, collate, japanese_vowels, made_up_words, pad


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([(), (3,), (2, 3)]))
def test_sequences_are_padded_and_masked(lengths: list[int], shape: tuple[int, ...]) -> None:
    sequences = [torch.rand(length, *shape) + 1 for length in lengths]
    x, mask = pad(sequences, value=-1.0)
    assert x.shape == (max(lengths), len(lengths), *shape)
    assert mask.shape == x.shape[:2]
    assert mask.dtype == torch.bool
    for b, sequence in enumerate(sequences):
        assert torch.equal(x[mask[:, b], b], sequence)
        assert mask[: len(sequence), b].all()
        assert (x[len(sequence) :, b] == -1).all()
    assert int(mask.sum()) == sum(lengths)


def test_gradients_pass_through_padding_and_sequences_print_sizes() -> None:
    sequences = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    x, mask = pad(sequences)
    (x * mask * torch.arange(1.0, 4.0).unsqueeze(1)).sum().backward()
    assert [s.grad.tolist() for s in sequences] == [[1, 2], [1, 2, 3]]
    assert pad(iter([torch.ones(1).bool(), torch.ones(2).bool()]), value=True)[0].all()
    for dtype in (torch.uint8, torch.int64, torch.float64):
        assert pad([torch.ones(n, dtype=dtype) for n in (1, 2)])[0].dtype == dtype
    data = Sequences([torch.rand(5, 4), torch.rand(7, 4)], torch.tensor([0, 1]))
    assert repr(data) == "Sequences(2 sequences of 5 to 7 steps of [4])"
    assert repr(Sequences([], torch.zeros(0))) == "Sequences(0 sequences of 0 to 0 steps of [])"


@refusals(
    r"""
    [] -> ValueError: at least one sequence
    torch.ones(2, 3) -> TypeError: takes a list of sequences .*, got one Tensor
    [[1.0, 2.0]] -> TypeError: sequence 0 must be a tensor, got list
    [torch.ones(2), torch.tensor(1.0)] -> ValueError: sequence 1 must have the shape \[T,
    [torch.ones(2, 3), torch.ones(0, 3)] -> ValueError: sequence 1 needs at least one time
    [torch.ones(2, 3), torch.ones(2, 4)]
        -> ValueError: differ in T alone, got \[2, 3\] of .* and, as sequence 1, \[2, 4\] of
    [torch.ones(2), torch.ones(2).double()]
        -> ValueError: of torch\.float32 and, as sequence 1, \[2\] of torch\.float64
    [torch.ones(2).long()], value=0.5
        -> ValueError: value must be one that torch.int64 holds, got 0.5
    [torch.ones(2).byte()], value=-1
        -> ValueError: value must be one that torch.uint8 holds, got -1
    [torch.ones(2).bool()], value=2 -> ValueError: value must be one that torch.bool holds, got 2
    """
)
def test_sequences_that_cannot_be_padded_are_rejected(call: str, error: str) -> None:
    check(f"pad({call})", error, globals())


def test_a_sample_is_what_comes_apart_in_two() -> None:
    class Sample:
        def __iter__(self) -> Iterator[Any]:
            return iter((torch.ones(2), 1))

    samples: Any = [Sample(), (torch.ones(3), 0)]
    assert collate(samples).y.tolist() == [1, 0]
    three = (torch.ones(2), 1, 2)
    others: Any = ((torch.ones(2, 4), "Tensor"), ({"x": 1, "y": 2}, "dict"), (three, "tuple of 3"))
    for other, kind in others:
        with pytest.raises(TypeError, match=rf"\(sequence, label\), got a {kind} as sample 0"):
            collate([other])


def test_several_inputs_and_targets_over_time_are_refused_with_the_way_out() -> None:
    two: Any = [((torch.ones(n, 4), torch.ones(n, 2)), 0) for n in (2, 5)]
    with pytest.raises(TypeError, match=r"one sequence of a sample, got a tuple\. .* pad each"):
        collate(two)
    over_time: Any = [(torch.ones(n, 4), torch.ones(n, 1)) for n in (2, 5)]
    with pytest.raises(ValueError, match=r"got \[2, 1\] and, of sample 1, \[5, 1\]\. .*pad\(targ"):
        collate(over_time)


@pytest.mark.parametrize("label", [3, 0.5, torch.tensor(3), torch.ones(2)])
def test_labels_are_stacked(label: Any) -> None:
    x, y, mask = collate([(torch.ones(2, 4), label), (torch.ones(5, 4), label)])
    assert x.shape == (5, 2, 4)
    assert torch.equal(y, torch.stack([torch.as_tensor(label)] * 2))
    assert mask.sum(0).tolist() == [2, 5]


def test_network_gives_padded_sequences_the_same_outputs_as_single_ones() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), tt.snn.LIF(8), tt.snn.Readout(8))
    samples: Any = [(torch.rand(n, 4), n) for n in (3, 7, 5)]
    x, _, mask = next(iter(DataLoader(samples, 3, collate_fn=collate)))
    batched = tt.decode.last(tt.unroll(net, x), mask=mask)
    for row, (sequence, _) in zip(batched, samples, strict=True):
        tt.zero_states(net)
        single = tt.unroll(net, sequence.unsqueeze(1))[-1, 0]
        assert torch.allclose(row, single, atol=1e-6)


# Sequences that are read or drawn


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

    def similar(x: Tensor, y: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])

    assert similar(forwards.mean(0), backwards.mean(0)) > 0.9
    assert similar(forwards, backwards) < similar(forwards, backwards.flip(0))
