"""Pad sequences of different lengths to one batch, with a mask of the real steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tracetorch.ragged import check_sequence


class Batch(NamedTuple):
    """A padded batch, as :func:`collate` returns it: ``for x, y, mask in loader``.

    Args:
        x: ``[T, B, ...]``, zero after the end of a sequence.
        y: ``[B]`` labels, or ``[B, ...]`` targets.
        mask: bool ``[T, B]``, True where a step of ``x`` is real.

    Example:
        >>> Batch(torch.zeros(5, 2, 3), torch.tensor([0, 1]), torch.ones(5, 2).bool()).y
        tensor([0, 1])
    """

    x: Tensor
    y: Tensor
    mask: Tensor


def pad(sequences: Iterable[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pad sequences ``[T_i, ...]`` of different lengths to one tensor, time first.

    ::

        mask[t, b] = t < T_b

    Args:
        sequences: the sequences of a batch; all but the first dimension, and the dtype, agree.
        value: the padding after the end of a sequence.

    Shape:
        ``[T, B, ...]`` with ``T`` the longest length, and the mask ``[T, B]``.

    Raises:
        TypeError: a sequence is not a tensor of real numbers.
        ValueError: there is no sequence, one has no time dimension or no step, they differ in dtype
            or in another dimension than time, or ``value`` does not fit the dtype.

    Example:
        >>> x, mask = pad([torch.ones(2), torch.ones(3)])
        >>> x.T.tolist(), mask.T.tolist()
        ([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [[True, True, False], [True, True, True]])
    """
    if isinstance(sequences, Tensor | Mapping):
        raise TypeError(
            f"pad takes a list of sequences [T, ...], got one {type(sequences).__name__}. Of equal "
            "length: torch.stack(sequences, 1) is a batch already."
        )
    sequences = list(sequences)
    if not sequences:
        raise ValueError("pad needs at least one sequence [T, ...], got none.")
    first = sequences[0]
    for number, sequence in enumerate(sequences):
        check_sequence(f"sequence {number}", sequence)
        if (sequence.shape[1:], sequence.dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"pad takes sequences [T, ...] that differ in T alone, got {list(first.shape)} of "
                f"{first.dtype} and, as sequence {number}, {list(sequence.shape)} of "
                f"{sequence.dtype}."
            )
    if not first.dtype.is_floating_point and first.new_full((), value).item() != value:
        raise ValueError(
            f"value must be one that {first.dtype} holds, got {value}. Convert the sequences with "
            ".float() first."
        )
    # the mask is made from lengths, as the padding may be a value that also occurs in the data
    lengths = torch.tensor([len(s) for s in sequences], device=first.device)
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    x = pad_sequence(sequences, padding_value=value)
    return x, steps.unsqueeze(1) < lengths


def collate(samples: Sequence[tuple[Tensor, Tensor | int | float]]) -> Batch:
    """Collate samples ``(sequence [T_i, ...], label)`` of a ``DataLoader`` to a batch, time first.

    Args:
        samples: sequences, and their labels as numbers or as tensors of one shape. Several inputs,
            and targets over time, are padded each by :func:`pad`.

    Shape:
        ``x [T, B, ...]``, ``y [B, ...]``, ``mask [T, B]``.

    Raises:
        TypeError: a sample is no pair, or has several sequences; or as :func:`pad`.
        ValueError: labels differ in shape; or as :func:`pad`.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> samples = [(torch.rand(n, 4), n % 2) for n in (5, 3, 6)]
        >>> x, y, mask = next(iter(DataLoader(samples, batch_size=3, collate_fn=collate)))
        >>> x.shape, y, mask.sum(0)
        (torch.Size([6, 3, 4]), tensor([1, 1, 0]), tensor([5, 3, 6]))
    """
    pairs: list[Any] = []
    for number, sample in enumerate(samples):
        # a tensor would come apart into its steps, a mapping into its keys
        parts = isinstance(sample, Iterable) and not isinstance(sample, Tensor | Mapping | str)
        pair = tuple(sample) if parts else ()
        if len(pair) != 2:
            raise TypeError(
                f"collate takes samples (sequence, label), got a {type(sample).__name__}"
                f"{f' of {len(pair)}' if parts else ''} as sample {number}. Of sequences alone: "
                "x, mask = tt.data.pad(sequences)."
            )
        if isinstance(pair[0], Sequence | Mapping):
            raise TypeError(
                f"collate pads one sequence of a sample, got a {type(pair[0]).__name__}. Of "
                "several inputs pad each: a, mask = tt.data.pad(first); b, _ = tt.data.pad(others)."
            )
        pairs.append(pair)
    x, mask = pad([sequence for sequence, _ in pairs])
    labels = [torch.as_tensor(label) for _, label in pairs]
    for number, label in enumerate(labels):
        if label.shape != labels[0].shape:
            raise ValueError(
                f"labels must have one shape, got {list(labels[0].shape)} and, of sample {number}, "
                f"{list(label.shape)}. Pad targets over time as their sequences: "
                "y, _ = tt.data.pad(targets)."
            )
    return Batch(x, torch.stack(labels), mask)
