"""Decompose PyTorch operations without a lowering rule into operations that have one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, decomposition_of


def _angle(x: Tensor) -> Tensor:
    return torch.where(x < 0, math.pi, torch.where(x.isnan(), x, 0.0))


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, x > 0)


def _shrink_backward(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    return torch.where((x >= -bound) & (x <= bound), 0.0, grad)


def _mvlgamma(x: Tensor, p: int) -> Tensor:
    total = torch.lgamma(x)
    for i in range(1, p):
        total = total + torch.lgamma(x - i / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)


# Our own, where PyTorch has none or one that counts in integers or computes indices.
_OWN: dict[str, Callable[..., Any]] = {
    "_conj_physical": torch.clone,
    "angle": _angle,
    "hardshrink_backward": _shrink_backward,
    "heaviside": _heaviside,
    "mvlgamma": _mvlgamma,
    "softshrink_backward": _shrink_backward,
}


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return a function that computes an operation by simpler ones, or ``None``.

    Args:
        operation: overload of an operation, such as ``torch.ops.aten.gelu.default``; for one in
            place the function returns the new value.
    """
    name = operation._schema.name.removeprefix("aten::")
    if operation._schema.is_mutable:
        name = name.removesuffix("_")
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, operation._overloadname, None)
    found = _OWN.get(name) or decomposition_of(operation)
    if found is None and operation is not None and operation.has_kernel_for_dispatch_key(COMPOSITE):
        return operation.decompose  # type: ignore[no-any-return]
    return found
