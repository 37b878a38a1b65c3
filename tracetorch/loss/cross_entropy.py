"""Cross entropy losses with rates, counts, membranes or first spike times as logits."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch import decode
from tracetorch.loss.descriptions import describe_cross_entropy
from tracetorch.loss.reduction import Reduction, check_reduction, mean_over_neurons, reduce_batch
from tracetorch.loss.targets import check_classes, holds_class_indices
from tracetorch.ragged import as_floating, check_sequence


def sample_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy ``[B]`` of logits ``[B, C, ...]``, averaged over ``...``."""
    if logits.ndim < 2:
        raise ValueError(
            "cross entropy needs an output [T, B, C, ...] with a dimension of classes, the output "
            f"at one step has shape {list(logits.shape)}."
        )
    logits = as_floating(logits)
    # checked here: PyTorch ignores the index -100, and its other errors on a GPU are fatal
    if holds_class_indices(target, logits.shape):
        check_classes(target, logits.shape[1])
        target = target.long()
    elif not target.is_floating_point():
        raise TypeError(
            f"a target of shape {list(target.shape)} holds probabilities of classes and must be "
            f"floating point, got {target.dtype}."
        )
    else:
        target = target.to(logits.dtype)
    return mean_over_neurons(F.cross_entropy(logits, target, reduction="none"))


@describe_cross_entropy
def rate_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with firing rates as logits.

    ::

        loss = -log softmax(scale * rate)[target],   rate = sum_t spikes[t] / T

    Args:
        spikes: the output; a membrane gives its average over time.
        scale: steepness, positive. Rates of spikes lie in [0, 1]: with ``scale=1`` a probability
            cannot exceed ``e / (e + C - 1)``.

    Raises:
        ValueError: ``scale`` is not positive.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> rate_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(0.25 - 0.75))
        tensor(0.4741)
    """
    check_reduction(reduction)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}.")
    check_sequence("spikes", spikes, batched=True)
    return reduce_batch(
        sample_cross_entropy(scale * decode.rate(spikes, mask=mask), target), reduction
    )


@describe_cross_entropy
def count_cross_entropy(
    spikes: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the cross entropy with spike counts as logits.

    ::

        loss = -log softmax(count)[target],   count = sum_t spikes[t]

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> count_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(1 - 3))
        tensor(0.1269)
    """
    check_reduction(reduction)
    check_sequence("spikes", spikes, batched=True)
    return reduce_batch(sample_cross_entropy(decode.count(spikes, mask=mask), target), reduction)


_DECODERS = {"maximum": decode.maximum, "mean": decode.rate, "last": decode.last}


@describe_cross_entropy
def membrane_cross_entropy(
    mem: Tensor,
    target: Tensor,
    *,
    over: Literal["maximum", "mean", "last"] = "maximum",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with a membrane's maximum, mean or last value as logits.

    ::

        loss = -log softmax(max_t mem[t])[target]

    Args:
        over: the value taken over time: ``"maximum"``, ``"mean"`` or ``"last"``.

    Shape:
        ``mem`` ``[T, B, C, ...]``; ``target`` ``[B, ...]`` or ``[B, C, ...]``; a scalar, or ``[B]``
        for ``"none"``.

    Raises:
        ValueError: ``over`` is unknown.

    Example:
        >>> mem = torch.tensor([[[0.0, 0.5]], [[2.0, 1.0]], [[1.0, 1.0]]])
        >>> membrane_cross_entropy(mem, torch.tensor([0]))  # log(1 + exp(1 - 2))
        tensor(0.3133)

    Reference:
        B. Cramer et al., "The Heidelberg spiking data sets for the systematic evaluation of
        spiking neural networks", IEEE TNNLS 33 (2022): max over time and last step.
    """
    check_reduction(reduction)
    if over not in _DECODERS:
        raise ValueError(f"over must be 'maximum', 'mean' or 'last', got {over!r}.")
    check_sequence("mem", mem, batched=True)
    return reduce_batch(sample_cross_entropy(_DECODERS[over](mem, mask=mask), target), reduction)


@describe_cross_entropy
def first_spike_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with negative times of first spikes as logits: the first wins.

    ::

        loss = -log softmax(-time / tau)[target]

    Args:
        spikes: the output; a neuron that stays silent has the sequence's length as its time.
        tau: scale of the differences in time, in steps; positive.

    Raises:
        ValueError: ``tau`` is not positive.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> first_spike_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(1 - 2))
        tensor(0.3133)

    Reference:
        J. Göltz et al., "Fast and energy-efficient neuromorphic deep learning with first-spike
        times", Nature Machine Intelligence 3 (2021), the loss without its regulariser.
    """
    check_reduction(reduction)
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, in steps, got {tau}.")
    check_sequence("spikes", spikes, batched=True)
    return reduce_batch(
        sample_cross_entropy(-decode.first_spike(spikes, mask=mask) / tau, target), reduction
    )
