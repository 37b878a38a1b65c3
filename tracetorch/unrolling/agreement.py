"""Compare values that two ways of computing have given, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_RTOL, _ATOL = 1e-4, 1e-5  # of a product of matrices in another order, and relative to the largest
_EPSILONS = 2  # at least so many of the dtype in which products are rounded, relative to either


def agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether there are as many values, and tensors agree to rounding."""
    return len(one) == len(other) and all(
        isinstance(a, Tensor) == isinstance(b, Tensor)
        and (not isinstance(a, Tensor) or (a.shape == b.shape and is_close(a, b, eps=_epsilon(a))))
        for a, b in zip(one, other, strict=True)
    )


def _epsilon(value: Tensor) -> float:
    """Return that of the dtype in which products are rounded: the value's, or that of autocast."""
    if not value.is_floating_point():
        return 0.0
    eps, kind = torch.finfo(value.dtype).eps, value.device.type
    if value.dtype is torch.float64 or not torch.is_autocast_enabled(kind):  # which leaves float64
        return eps
    return max(eps, torch.finfo(torch.get_autocast_dtype(kind)).eps)


def is_close(one: Tensor, other: Tensor, share: float = 0.0, eps: float = 0.0) -> bool:
    """Whether all values but a share agree to rounding, or to ``eps`` of a narrower dtype."""
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        differ = one != other
    else:
        finite = one[torch.isfinite(one)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        rtol, atol = (max(least, _EPSILONS * eps) for least in (_RTOL, _ATOL))
        atol *= max(scale, 1e-3)
        differ = ~torch.isclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
    return int(differ.count_nonzero()) <= share * one.numel()
