"""Convert between decays, half-lives and time constants, and invert sigmoid and softplus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from tracetorch.core.checks import check_number

Real = TypeVar("Real", float, Tensor)


def _checked(
    name: str, value: float | Tensor, requirement: str, is_allowed: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return a tensor as it is, a number in float64."""
    if not isinstance(value, Tensor):
        value = check_number(f"{name}: the value", value)
        # a default device of "meta" or "cuda" must not change what a plain number gives
        value = torch.tensor(value, dtype=torch.float64, device="cpu")
    valid = is_allowed(value)
    if not bool(valid.all()):
        offender = value[~valid].flatten()[0].item()
        raise ValueError(f"{name}: the value must {requirement}, got {offender}.")
    return value


def _as_given(value: Real, result: Tensor) -> Real:
    return result if isinstance(value, Tensor) else result.item()


def sigmoid_inverse(y: Real) -> Real:
    """Invert the sigmoid: ``log(y) - log(1 - y)``.

    Args:
        y: a number or a floating-point tensor in [0, 1]; 0 and 1 give the infinities.

    Raises:
        TypeError: ``y`` is neither a number nor a tensor.
        ValueError: ``y`` is outside [0, 1] or NaN.

    Example:
        >>> round(sigmoid_inverse(0.9), 4)
        2.1972
        >>> torch.sigmoid(sigmoid_inverse(torch.tensor([0.1, 0.5])))
        tensor([0.1000, 0.5000])
    """
    v = _checked("sigmoid_inverse", y, "lie in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    return _as_given(y, torch.log(v) - torch.log1p(-v))


def softplus_inverse(y: Real) -> Real:
    """Invert softplus: ``y + log(1 - exp(-y))``, in a form that cannot overflow.

    Args:
        y: a number or a floating-point tensor, not negative; 0 gives minus infinity.

    Raises:
        TypeError: ``y`` is neither a number nor a tensor.
        ValueError: ``y`` is negative, infinite or NaN.

    Example:
        >>> round(softplus_inverse(1.0), 4)
        0.5413
        >>> softplus_inverse(200.0)
        200.0
    """
    requirement = "be finite and not negative"
    v = _checked("softplus_inverse", y, requirement, lambda v: (v >= 0) & (v < math.inf))
    return _as_given(y, v + torch.log(-torch.expm1(-v)))


def halflife_to_decay(num_steps: Real) -> Real:
    """Convert a half-life of ``num_steps`` steps to a decay: ``0.5 ** (1 / num_steps)``.

    Args:
        num_steps: time steps until half is left, a number or a floating-point tensor; positive.

    Raises:
        TypeError: ``num_steps`` is neither a number nor a tensor.
        ValueError: ``num_steps`` is not positive.

    Example:
        >>> round(halflife_to_decay(10.0), 4)
        0.933
    """
    v = _checked("halflife_to_decay", num_steps, "be positive", lambda v: v > 0)
    return _as_given(num_steps, torch.exp(-math.log(2) / v))


def decay_to_halflife(decay: Real) -> Real:
    """Convert a decay to a half-life in time steps: ``log(0.5) / log(decay)``.

    Args:
        decay: a number or a floating-point tensor strictly between 0 and 1.

    Raises:
        TypeError: ``decay`` is neither a number nor a tensor.
        ValueError: ``decay`` is not strictly between 0 and 1.

    Example:
        >>> round(decay_to_halflife(0.9), 4)
        6.5788
    """
    requirement = "lie strictly between 0 and 1"
    v = _checked("decay_to_halflife", decay, requirement, lambda v: (v > 0) & (v < 1))
    return _as_given(decay, -math.log(2) / torch.log(v))


def time_constant_to_decay(tau: Real, dt: float = 1.0) -> Real:
    """Convert a time constant to the decay of one step: ``exp(-dt / tau)``.

    Args:
        tau: the time constant, in milliseconds say, a number or a floating-point tensor; positive.
        dt: length of a step, in the unit of ``tau``.

    Raises:
        TypeError: ``tau`` is neither a number nor a tensor.
        ValueError: ``tau`` or ``dt`` is not positive.

    Example:
        >>> round(time_constant_to_decay(20.0), 4)
        0.9512
        >>> round(time_constant_to_decay(20.0, dt=4.0), 4)
        0.8187
    """
    if not dt > 0:
        raise ValueError(f"time_constant_to_decay: dt must be positive, got {dt}.")
    v = _checked("time_constant_to_decay", tau, "be positive", lambda v: v > 0)
    return _as_given(tau, torch.exp(-dt / v))
