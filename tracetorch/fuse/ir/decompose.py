"""Decompose PyTorch operations without a lowering rule into operations that have one.

At NaN PyTorch has two gradients of ``elu``, ``celu``, ``selu``, ``hardswish``, ``hardtanh``,
``hardshrink``, ``softshrink`` and ``logit``: one where it computes in vectors, another in what is
left over of a tensor. That of the vectors, which most values have, is the one here.

Integrals and series that PyTorch computes by tables of its own, ``lgamma``, ``erfinv`` or Bessel
functions, run in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, decomposition_of

# Our own, where PyTorch has none, where its own counts in integers, computes indices or depends on
# the device, or where it is not what PyTorch computes for NaN and zeros.
_OWN: dict[str, Callable[..., Any]] = {
    "_conj_physical": torch.clone,
    "frac": lambda x: x - torch.trunc(x),
}
F = TypeVar("F", bound=Callable[..., Any])


def _own(*names: str) -> Callable[[F], F]:
    """Make a function the decomposition of operations."""

    def register(function: F) -> F:
        _OWN.update(dict.fromkeys(names, function))
        return function

    return register


@_own("heaviside")
def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, x > 0)


@_own("elu_backward")
def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    grown = x + alpha * scale if is_result else alpha * scale * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, grad * input_scale * grown)


@_own("hardsigmoid_backward")
def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    # PyTorch's sixth is one of float32, in float64 too.
    return torch.where((x > -3) & (x < 3), grad * 0.1666666716337204, 0.0)


@_own("hardswish_backward")
def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    between = torch.where(x <= -3, 0.0, grad * (x / 3 + 0.5))
    return torch.where(x >= 3, grad, between)


@_own("softshrink")
def _softshrink(x: Tensor, bound: float = 0.5) -> Tensor:
    below = torch.where(x < -bound, x + bound, torch.where(x.isnan(), x, 0.0))
    return torch.where(x > bound, x - bound, below)


@_own("hardshrink_backward", "softshrink_backward")
def _shrink_backward(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    return torch.where((x > bound) | (x < -bound), grad, 0.0)


@_own("smooth_l1_loss_backward")
def _smooth_l1_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float
) -> Tensor:
    distance = x - target
    above = torch.where(distance >= beta, grad, distance * grad / beta)
    return torch.where(distance <= -beta, -grad, above)


@_own("soft_margin_loss_backward")
def _soft_margin_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    # NaN where it overflows, as in PyTorch
    grown = torch.exp(-target * x)
    return target * grown * -1.0 / (grown + 1.0) * grad


@_own("log_sigmoid_forward")
def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    small = torch.exp(-x.abs())
    return x.clamp_max(0.0) - torch.log1p(small), small


@_own("log_sigmoid_backward")
def _log_sigmoid_backward(grad: Tensor, x: Tensor, small: Tensor) -> Tensor:
    share = small / (1 + small)
    return grad * torch.where(x < 0, 1 - share, share)


@_own("angle")
def _angle(x: Tensor) -> Tensor:
    return torch.where(x < 0, math.pi, torch.where(x.isnan(), x, 0.0))


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return a function that computes an operation by simpler ones, in place too, or ``None``."""
    name = operation._schema.name.removeprefix("aten::")
    if operation._schema.is_mutable:
        name = name.removesuffix("_")
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, operation._overloadname, None)
    found = _OWN.get(name) or decomposition_of(operation)
    if found is None and operation is not None and operation.has_kernel_for_dispatch_key(COMPOSITE):
        return operation.decompose  # type: ignore[no-any-return]
    return found
