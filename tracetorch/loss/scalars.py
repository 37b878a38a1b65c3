"""Check numbers that may also be tensors of one, such as a scale that is learned."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_number


def check_scalar(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a number, or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be a real number, got {value}.")
    else:
        check_number(name, value)


def check_positive_scalar(name: str, value: float, unit: str = "") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``value`` is positive and finite."""
    check_scalar(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite{unit}, got {value}.")
