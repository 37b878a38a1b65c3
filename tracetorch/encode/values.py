"""What encoders are given: values in a range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_values(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {got}. Convert it, bytes of an image by "
            "x.float() / 255."
        )


def within(name: str, x: Tensor, low: float, high: float) -> Tensor:
    """``x`` if all of it is in [low, high], what rounding has put beyond cut off.

    Raises:
        ValueError: a value lies outside, or is NaN.

    """
    if torch.compiler.is_compiling():  # looking at values would break a compiled graph
        return x.clamp(low, high)
    slack = 4 * torch.finfo(x.dtype).eps
    fits = (x >= low - slack) & (x <= high + slack)
    if not bool(fits.all()):
        worst = x[~fits].flatten()[0].item()
        allowed = "not be negative" if high == math.inf else f"lie in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must {allowed}, got {worst}. Scale the input, or clamp it.")
    return x.clamp(low, high)
