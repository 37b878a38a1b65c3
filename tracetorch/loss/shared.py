"""Descriptions, targets and reductions that the losses share."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.core.torch_private import is_readable
from tracetorch.ragged import TIME_FIRST

_WRONG_TYPE = {"TypeError": "an argument is of the wrong type."}
_EVERY_LOSS = {
    "spikes": "the output.",
    "mem": "the membrane, the output of a readout.",
    "mask": "``[T, B]`` booleans, true where a step is real.",
    "reduction": '``"mean"`` or ``"sum"`` over the batch, or ``"none"``.',
}
_UNLIKE_CLASSES = {
    "ValueError": "shapes do not fit, a class or probability is out of range, or a sequence has no "
    "real step."
}
_ACTIVITY = {**_EVERY_LOSS, "spikes": "spikes, or a mapping of them by layer."}
_UNLIKE_LAYERS = {
    "ValueError": "shapes do not fit, the mapping is empty or has states beside outputs, or a "
    "sequence has no real step."
}

describe_cross_entropy = SharedDescriptions(
    {
        **_EVERY_LOSS,
        "target": "classes, or probabilities of classes.",
        "weight": 'weight of each class, ``[C]``, not negative; for ``"mean"`` the sum is '
        "divided by the weights of the target's classes, as in PyTorch.",
        "label_smoothing": "share of the target that is spread over all classes, in [0, 1].",
    },
    "``spikes`` ``[T, B, C, ...]``; ``target`` ``[B, ...]`` or ``[B, C, ...]``; a scalar, or\n"
    '``[B]`` for ``"none"``.',
    _WRONG_TYPE | _UNLIKE_CLASSES,
)
describe_mse = SharedDescriptions(
    _EVERY_LOSS,
    "``spikes`` ``[T, B, N, ...]``; ``target`` ``[B, N, ...]``, or integers ``[B, ...]``; a\n"
    'scalar, or ``[B]`` for ``"none"``.',
    _WRONG_TYPE | _UNLIKE_CLASSES,
)
describe_activity = SharedDescriptions(
    _ACTIVITY, '``[T, B, ...]``; a scalar, or ``[B]`` for ``"none"``.', _WRONG_TYPE | _UNLIKE_LAYERS
)
describe_pooled_activity = SharedDescriptions(
    _ACTIVITY,
    '``[T, B, ...]``; a scalar, or for ``"none"`` ``[B]``, ``[1]`` if ``pooled``.',
    _WRONG_TYPE | _UNLIKE_LAYERS,
)


_ROUNDING = 1e-2  # of probabilities that bfloat16 has rounded


def check_is_tensor(name: str, value: object) -> None:
    """Raise ``TypeError`` for a list or an array, which may have a shape as a tensor has."""
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise TypeError(f"{name} must be a tensor, got {got}. Wrap it: torch.as_tensor(...).")


def holds_class_indices(target: Tensor, shape: torch.Size) -> bool:
    """Whether ``target`` holds indices of classes, dimension 1 of ``shape`` ``[B, C, ...]``."""
    check_is_tensor("target", target)
    is_integer = not target.is_floating_point() and target.dtype != torch.bool
    if len(shape) > 1 and is_integer and target.shape == shape[:1] + shape[2:]:
        return True
    if target.shape != shape:
        classes = f" or classes, integers {[*shape[:1], *shape[2:]]}," if len(shape) > 1 else ""
        each_step = is_integer and target.shape[1:] == shape[:1] + shape[2:]
        raise ValueError(
            f"target must be of shape {list(shape)}{classes} for this output, got "
            f"{target.dtype} of shape {list(target.shape)}."
            + TIME_FIRST * (is_integer and target.ndim == 1)
            + " Of a class for each step [T, B] take tt.loss.temporal_cross_entropy." * each_step
        )
    return False


def check_classes(target: Tensor, classes: int) -> None:
    """Raise ``ValueError`` for a class out of range: PyTorch would ignore some, such as -100."""
    if not is_readable(target):
        return
    invalid = ((target < 0) | (target >= classes)).flatten().nonzero()
    if len(invalid):
        got = target.flatten()[int(invalid[0])].item()
        raise ValueError(f"target must name classes from 0 to {classes - 1}, got {got}.")


def check_probabilities(name: str, values: Tensor, otherwise: str) -> None:
    """Raise ``ValueError`` for a value outside [0, 1] by more than rounding; NaN passes."""
    if not is_readable(values):
        return
    outside = values[(values < -_ROUNDING) | (values > 1 + _ROUNDING)]
    if len(outside):
        raise ValueError(
            f"{name} must be probabilities, from 0 to 1, got {outside[0].item():.4g}. {otherwise}"
        )


def target_values(
    target: Tensor, value: Tensor, correct: float | Tensor, incorrect: float | Tensor
) -> Tensor:
    """Return the target of each element of ``value`` ``[B, C, ...]``, in its dtype."""
    if not holds_class_indices(target, value.shape):
        return target.to(value.dtype)
    check_classes(target, value.shape[1])
    index = torch.arange(value.shape[1], device=value.device)
    index = index.reshape(-1, *[1] * (value.ndim - 2))
    is_target = target.unsqueeze(1) == index  # [B, C, ...]
    high, low = (
        torch.as_tensor(v, dtype=value.dtype, device=value.device) for v in (correct, incorrect)
    )
    return torch.where(is_target, high, low)


Reduction: TypeAlias = Literal["mean", "sum", "none"]


def reduce_batch(per_sample: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    """Reduce losses ``[B]``: sum, none, or a mean, over the sum of ``weights`` if there are any."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "mean":
        return per_sample.mean() if weights is None else per_sample.sum() / weights.sum()
    return per_sample.sum() if reduction == "sum" else per_sample


def mean_over_neurons(loss: Tensor) -> Tensor:
    """Take the mean over all dimensions but the batch: ``[B, ...]`` to ``[B]``."""
    return loss if loss.ndim == 1 else loss.flatten(1).mean(1)


def check_positive_scalar(name: str, value: float | Tensor) -> None:
    """Raise ``ValueError`` unless a number, or a tensor of one that is learned, is positive."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
