"""Accuracy of a classification, decoded by rate, count, first spike, last or maximum."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tracetorch import decode
from tracetorch.core.checks import check_choice
from tracetorch.ragged import TIME_FIRST

By: TypeAlias = Literal["rate", "count", "first_spike", "last", "maximum"]


def accuracy(x: Tensor, target: Tensor, *, by: By = "rate", mask: Tensor | None = None) -> Tensor:
    """Return the share of samples that are classified correctly.

    The predicted class is that of the highest rate, count, last or maximal membrane, or of the
    earliest first spike; of several, the first. A sample with equal scores for all classes, such as
    one without any spike, or with NaN among them, has no prediction and counts as wrong.

    Args:
        x: outputs of the network.
        target: the classes.
        by: the decoder, a function of ``tt.decode``.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``x`` is ``[T, B, C]``, ``target`` ``[B]``; a scalar.

    Raises:
        TypeError: a tensor is of the wrong kind.
        ValueError: the shapes do not fit, there is no sample, a class is out of range, or ``by`` is
            unknown.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])
        >>> accuracy(spikes, torch.tensor([0, 0]))
        tensor(0.5000)
    """
    hits = correct(x, target, by=by, mask=mask)
    if not len(hits):
        raise ValueError(f"x has no sample: its shape is {list(x.shape)}, [T, B, C].")
    return hits.double().mean().to(torch.get_default_dtype())


def correct(x: Tensor, target: Tensor, *, by: By = "rate", mask: Tensor | None = None) -> Tensor:
    """Mark the samples that are classified correctly, ``[B]``; arguments as :func:`accuracy`."""
    if str(by) == "mean":  # as losses call it
        raise ValueError("by must be 'rate' for the mean over time, of membranes too, got 'mean'.")
    check_choice("by", by, get_args(By))
    scores: Tensor = getattr(decode, by)(x, mask=mask)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype is torch.bool:
        is_tensor = isinstance(target, Tensor)
        got = f"a tensor of {target.dtype}" if is_tensor else type(target).__name__
        raise TypeError(
            f"target must be a tensor of integers, the classes, got {got}."
            + " Wrap it: torch.as_tensor(...)." * (not is_tensor)
        )
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"accuracy needs x [T, B, C] and target [B], got {list(x.shape)} and "
            f"{list(target.shape)}." + TIME_FIRST * (target.shape == x.shape[:1])
        )
    classes = scores.shape[1]
    if bool(((target < 0) | (target >= classes)).any()):
        raise ValueError(
            f"target has the classes {int(target.min())} to {int(target.max())}, the output has "
            f"{classes} neurons, one for each of the classes 0 to {classes - 1}."
        )
    predicted, undecided = decided(scores, lowest=by == "first_spike")
    return torch.logical_and(predicted == target.to(predicted.device), ~undecided)


def decided(scores: Tensor, *, lowest: bool = False) -> tuple[Tensor, Tensor]:
    """Return the class of the highest, or lowest, score of each sample, and which have none."""
    if scores.dtype is torch.bool:
        scores = scores.byte()  # argmax takes numbers
    predicted = scores.argmin(1) if lowest else scores.argmax(1)
    # argmax of equal scores is class 0, and that of NaN where it is first: right for some samples
    return predicted, (scores == scores[:, :1]).all(1) | scores.isnan().any(1)
