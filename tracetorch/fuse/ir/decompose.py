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


def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    grown = x + alpha * scale if is_result else alpha * scale * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, grad * input_scale * grown)


def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    # PyTorch's sixth is one of float32, in float64 too.
    return torch.where((x > -3) & (x < 3), grad * 0.1666666716337204, 0.0)


def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    between = torch.where(x <= -3, 0.0, grad * (x / 3 + 0.5))
    return torch.where(x >= 3, grad, between)


def _softshrink(x: Tensor, bound: float = 0.5) -> Tensor:
    below = torch.where(x < -bound, x + bound, torch.where(x.isnan(), x, 0.0))
    return torch.where(x > bound, x - bound, below)


def _shrink_backward(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    return torch.where((x > bound) | (x < -bound), grad, 0.0)


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    small = torch.exp(-x.abs())
    return x.clamp_max(0.0) - torch.log1p(small), small


def _log_sigmoid_backward(grad: Tensor, x: Tensor, small: Tensor) -> Tensor:
    share = small / (1 + small)
    return grad * torch.where(x < 0, 1 - share, share)


def _digamma(x: Tensor) -> Tensor:
    # Mirrored to the right half, moved from there to where the asymptotic series is exact.
    left = x < 0
    y = torch.where(left, 1 - x, x)
    total = torch.zeros_like(x)
    for _ in range(10):
        total = total - torch.where(y < 10, 1 / y, 0.0)
        y = torch.where(y < 10, y + 1, y)
    z = 1 / (y * y)
    series = torch.zeros_like(x)
    for coefficient in (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12):
        series = z * (coefficient + series)
    total = total + torch.log(y) - 0.5 / y - series
    fraction = x - torch.trunc(x)
    mirrored = torch.where(fraction == 0, math.nan, total - math.pi / torch.tan(math.pi * fraction))
    return torch.where(
        x == 0, torch.copysign(total.new_full((), math.inf), -x), torch.where(left, mirrored, total)
    )


# Our own, where PyTorch has none, where its own counts in integers, computes indices or depends on
# the device, or where it is not what PyTorch computes for NaN and zeros.
_OWN: dict[str, Callable[..., Any]] = {
    "_conj_physical": torch.clone,
    "angle": _angle,
    "digamma": _digamma,
    "elu_backward": _elu_backward,
    "frac": lambda x: x - torch.trunc(x),
    "hardshrink_backward": _shrink_backward,
    "hardsigmoid_backward": _hardsigmoid_backward,
    "hardswish_backward": _hardswish_backward,
    "heaviside": _heaviside,
    "log_sigmoid_backward": _log_sigmoid_backward,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "softshrink": _softshrink,
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
