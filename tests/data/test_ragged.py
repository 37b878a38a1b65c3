from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

import tracetorch as tt
from tracetorch.data import collate, pad
from tracetorch.data.vowels import Sequences


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


def test_gradients_pass_through_padding() -> None:
    sequences = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    x, mask = pad(sequences)
    (x * mask * torch.arange(1.0, 4.0).unsqueeze(1)).sum().backward()
    assert [s.grad.tolist() for s in sequences] == [[1, 2], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert pad([torch.ones(2, dtype=dtype), torch.ones(1, dtype=dtype)])[0].dtype == dtype


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([], ValueError, "at least one sequence"),
        (torch.ones(2, 3), TypeError, "takes a list of sequences .*, got one Tensor"),
        ({"a": torch.ones(2)}, TypeError, "takes a list of sequences .*, got one dict"),
        ([[1.0, 2.0]], TypeError, "sequence 0 must be a tensor, got list"),
        ([torch.ones(2), torch.tensor(1.0)], ValueError, r"sequence 1 must have the shape \[T, "),
        ([torch.ones(2, 3), torch.ones(0, 3)], ValueError, "sequence 1 needs at least one time"),
        (
            [torch.ones(2, 3), torch.ones(2, 4)],
            ValueError,
            r"differ in T alone, got \[2, 3\] of .* and, as sequence 1, \[2, 4\] of",
        ),
        (
            [torch.ones(2), torch.ones(2).double()],
            ValueError,
            r"of torch\.float32 and, as sequence 1, \[2\] of torch\.float64",
        ),
    ],
)
def test_sequences_that_cannot_be_padded_are_rejected(sequences, error, message) -> None:
    with pytest.raises(error, match=message):
        pad(sequences)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.int64, 0.5), (torch.uint8, -1), (torch.bool, 2)]
)
def test_padding_that_its_dtype_does_not_hold_is_refused(dtype: torch.dtype, value: float) -> None:
    with pytest.raises(ValueError, match=rf"value must be one that {dtype} holds, got {value}"):
        pad([torch.ones(2, dtype=dtype)], value=value)
    assert pad(iter([torch.ones(1).bool(), torch.ones(2).bool()]), value=True)[0].all()


def test_a_sample_is_what_comes_apart_in_two() -> None:
    @dataclass
    class Sample:
        sequence: Tensor
        label: int

        def __iter__(self) -> Iterator[Any]:
            return iter((self.sequence, self.label))

    samples: Any = [Sample(torch.ones(2), 1), Sample(torch.ones(3), 0)]
    assert collate(samples).y.tolist() == [1, 0]
    others: Any = (
        (torch.ones(2, 4), "Tensor"),
        ({"x": 1, "y": 2}, "dict"),
        ((samples[0].sequence, 1, 2), "tuple of 3"),
    )
    for other, kind in others:
        with pytest.raises(TypeError, match=rf"\(sequence, label\), got a {kind} as sample 0"):
            collate([other])


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


def test_sequences_print_their_sizes() -> None:
    data = Sequences([torch.rand(5, 4), torch.rand(7, 4)], torch.tensor([0, 1]))
    assert repr(data) == "Sequences(2 sequences of 5 to 7 steps of [4])"
    assert repr(Sequences([], torch.zeros(0))) == "Sequences(0 sequences of 0 to 0 steps of [])"
