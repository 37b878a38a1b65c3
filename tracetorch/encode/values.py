"""Check the values that encoders take: floating point, and check_range a range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.core.torch_private import is_readable


def check_values(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {got}. Convert it, bytes of an image by "
            "x.float() / 255."
        )


def check_range(name: str, x: Tensor, low: float, high: float) -> Tensor:
    """Check that ``x`` lies in [low, high] up to rounding, and return it clamped to the range."""
    if not is_readable(x):
        return x.clamp(low, high)
    slack = 4 * torch.finfo(x.dtype).eps
    # written so that NaN, which compares false, is invalid
    valid = (x >= low - slack) & (x <= high + slack)
    if not bool(valid.all()):
        offender = x[~valid].flatten()[0].item()
        allowed = "not be negative" if high == math.inf else f"lie in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must {allowed}, got {offender}. Scale the input, or clamp it.")
    return x.clamp(low, high)
