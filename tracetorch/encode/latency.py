"""Latency coding: encode a value as the time of one spike, early for strong values."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_positive
from tracetorch.encode.values import check_range, check_values


def latency(
    x: Tensor,
    steps: int,
    *,
    kind: Literal["linear", "exponential"] = "linear",
    threshold: float | None = None,
    tau: float = 20.0,
) -> Tensor:
    """Encode each value above the threshold as one spike, earlier for stronger values.

    ::

        linear:       time = (1 - x) / (1 - threshold) * (T - 1)
        exponential:  time = tau * log(x / (x - threshold))

    rounded to the nearest step. The exponential time is when a leaky membrane, charged by the
    constant current ``x``, reaches the threshold. There is no spike for values at or below it, or
    for times after the last step. Times are whole steps, so there is no gradient.

    Args:
        x: values in [0, 1] for ``"linear"``, not negative for ``"exponential"``.
        steps: the number of time steps.
        kind: the equation for the time, ``"linear"`` or ``"exponential"``.
        threshold: in [0, 1), 0 if left out, for ``"linear"``; positive, 0.2 if left out, for
            ``"exponential"``.
        tau: the membrane's time constant in steps, positive; for ``"exponential"``.

    Shape:
        ``[...]`` to ``[T, ...]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``steps`` not an integer.
        ValueError: a value, ``threshold`` or ``tau`` is out of range; ``steps`` is less than 1;
            ``kind`` is unknown.

    Example:
        >>> latency(torch.tensor([1.0, 0.5, 0.0]), 3).T
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])

    Reference:
        S. Thorpe, A. Delorme and R. Van Rullen, "Spike-based strategies for rapid processing",
        Neural Networks 14 (2001); for ``"exponential"`` with these defaults the tutorials of
        F. Zenke's SpyTorch (2019).
    """
    check_values("x", x)
    T = check_count("steps", steps)
    if kind not in ("linear", "exponential"):
        raise ValueError(f"kind must be 'linear' or 'exponential', got {kind!r}.")
    value = x.detach()
    # in float64: half precision cannot tell a few thousand steps apart
    if kind == "linear":
        level = 0.0 if threshold is None else threshold
        if not 0 <= level < 1:
            raise ValueError(f"threshold must lie in [0, 1) for kind='linear', got {level}.")
        time = (1 - check_range("x", value, 0.0, 1.0).double()) / (1 - level) * (T - 1)
    else:
        level = check_positive("threshold", 0.2 if threshold is None else threshold)
        check_positive("tau", tau)
        time = -tau * torch.log1p(-level / check_range("x", value, 0.0, math.inf).double())
    # no step has the index infinity, so values at or below the threshold have no spike
    time = torch.where(value > level, time, math.inf).round()
    index = torch.arange(T, dtype=torch.float64, device=x.device).reshape(-1, *[1] * x.ndim)
    return (time == index).to(x.dtype)
