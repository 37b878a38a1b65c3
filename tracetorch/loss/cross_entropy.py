"""Cross entropy losses with rates, counts, membranes or first spike times as logits."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch import decode
from tracetorch.core.checks import check_choice, check_share
from tracetorch.core.torch_private import is_readable
from tracetorch.loss.descriptions import describe_cross_entropy
from tracetorch.loss.reduction import (
    Reduction,
    check_positive_scalar,
    mean_over_neurons,
    reduce_batch,
)
from tracetorch.loss.targets import check_classes, check_probabilities, holds_class_indices
from tracetorch.ragged import as_floating


def sample_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the cross entropy ``[B]`` of logits ``[B, C, ...]``, averaged over ``...``.

    Returns:
        The losses, and what ``"mean"`` divides their sum by in place of their number, as PyTorch
        does: the weights of the target's classes, ``[B]``; ``None`` without any.
    """
    if logits.ndim < 2:
        raise ValueError(
            "cross entropy needs an output [T, B, C, ...] with a dimension of classes, the output "
            f"at one step has shape {list(logits.shape)}."
        )
    logits = as_floating(logits)
    check_share("label_smoothing", label_smoothing)
    if weight is not None:
        if is_readable(weight) and not bool(((weight >= 0) & (weight < torch.inf)).all()):
            raise ValueError("weight must be finite and not negative.")
        weight = weight.to(logits)
    weights = None
    # checked here: PyTorch ignores the index -100, and its other errors on a GPU are fatal
    if holds_class_indices(target, logits.shape):
        check_classes(target, logits.shape[1])
        target = target.long()
        weights = None if weight is None else mean_over_neurons(weight[target])
    elif target.is_floating_point():
        check_probabilities("target", target, "Class indices are integers, without that dimension.")
        target = target.to(logits.dtype)
    losses = F.cross_entropy(
        logits, target, weight, reduction="none", label_smoothing=label_smoothing
    )
    return mean_over_neurons(losses), weights


@describe_cross_entropy
def rate_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
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
    check_positive_scalar("scale", scale)
    logits = scale * decode.rate(spikes, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


@describe_cross_entropy
def count_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with spike counts as logits.

    ::

        loss = -log softmax(count)[target],   count = sum_t spikes[t]

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> count_cross_entropy(spikes, torch.tensor([0]))  # log(1 + exp(1 - 3))
        tensor(0.1269)
    """
    logits = decode.count(spikes, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


_DECODERS = {"mean": decode.rate, "maximum": decode.maximum, "last": decode.last}


@describe_cross_entropy
def membrane_cross_entropy(
    mem: Tensor,
    target: Tensor,
    *,
    over: Literal["mean", "maximum", "last"] = "mean",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the cross entropy with a membrane's mean, maximum or last value as logits.

    ::

        loss = -log softmax(mean_t mem[t])[target]

    Args:
        over: the value taken over time: ``"mean"``, ``"maximum"`` or ``"last"``. A mean sends a
            gradient to every step, and is decided by all of them; a maximum by one step of each
            class.

    Shape:
        ``mem`` ``[T, B, C, ...]``; ``target`` ``[B, ...]`` or ``[B, C, ...]``; a scalar, or ``[B]``
        for ``"none"``.

    Raises:
        ValueError: ``over`` is unknown.

    Example:
        >>> mem = torch.tensor([[[0.0, 0.5]], [[2.0, 1.0]], [[1.0, 1.0]]])
        >>> membrane_cross_entropy(mem, torch.tensor([0]), over="maximum")  # log(1 + exp(1 - 2))
        tensor(0.3133)
        >>> membrane_cross_entropy(mem, torch.tensor([0]))  # log(1 + exp(5 / 6 - 1))
        tensor(0.6133)

    Reference:
        B. Cramer et al., "The Heidelberg spiking data sets for the systematic evaluation of
        spiking neural networks", IEEE TNNLS 33 (2022): max over time and last step.
    """
    check_choice("over", over, [*_DECODERS])
    logits = _DECODERS[over](mem, mask=mask)
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)


@describe_cross_entropy
def first_spike_cross_entropy(
    spikes: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
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
    check_positive_scalar("tau", tau)
    logits = -decode.first_spike(spikes, mask=mask) / tau
    losses, weights = sample_cross_entropy(logits, target, weight, label_smoothing)
    return reduce_batch(losses, reduction, weights)
