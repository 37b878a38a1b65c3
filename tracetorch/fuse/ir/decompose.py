"""Decompose PyTorch operations without a lowering rule into operations that have one.

At NaN PyTorch has two gradients of ``elu``, ``celu``, ``selu``, ``hardswish``, ``hardtanh``,
``hardshrink``, ``softshrink`` and ``logit``: one where it computes in vectors, another in what is
left over of a tensor. That of the vectors, which most values have, is the one here.

``erfinv`` is within four last places of PyTorch's. Bessel functions are within four of the exact
ones, where PyTorch's own in float64 are off by up to six. ``digamma``, which is the gradient of
``lgamma``, is a sum of terms that cancel near its zeros, and ``erfcx`` loses digits in its
gradient: what is left depends on the last places of each term, so that both run in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


# Blair, Edwards and Johnson, "Rational Chebyshev approximations for the inverse of the error
# function", Mathematics of Computation 30 (1976), to nine digits: up to 0.7 in the square of the
# argument, and above it in the root of -log((1 - |y|) / 2).
_NEAR = (0.886226899, -1.645349621, 0.914624893, -0.140543331)
_BELOW_NEAR = (1.0, -2.118377725, 1.442710462, -0.329097515, 0.012229801)
_FAR = (-1.970840454, -1.624906493, 3.429567803, 1.641345311)
_BELOW_FAR = (1.0, 3.543889200, 1.637067800)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


@_own("erfinv")
def _erfinv(y: Tensor) -> Tensor:
    size, square = y.abs(), y * y
    rest, is_near = 1.0 - size, size <= 0.7
    root = torch.sqrt(-torch.log(rest / 2))
    near = size * _polynomial(square, _NEAR) / _polynomial(square, _BELOW_NEAR)
    x = torch.where(is_near, near, _polynomial(root, _FAR) / _polynomial(root, _BELOW_FAR))
    for _ in range(2):  # Newton's steps, with that function of which few digits cancel
        error = torch.where(is_near, torch.erf(x) - size, rest - torch.erfc(x))
        x = x - error / (2 / math.sqrt(math.pi) * torch.exp(-x * x))
    return torch.copysign(torch.where(size == 1, math.inf, x), y)


def _bessel(order: int, is_scaled: bool) -> Callable[[Tensor], Tensor]:
    """Return a modified Bessel function, times ``exp(-abs(x))`` where it is scaled.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 9.6.10 (a series of terms of one
    sign) and 9.7.1 (an asymptotic one, whose smallest term is of the size of ``exp(-2 x)``).
    """

    def function(x: Tensor) -> Tensor:
        size, is_single = x.abs(), x.dtype == torch.float32
        border, terms, far_terms = (12.0, 21, 15) if is_single else (20.0, 48, 32)
        near_series, far_series = [1.0], [1.0]
        for k in range(1, terms):
            near_series.append(near_series[-1] / (k * (k + order)))
        for k in range(1, far_terms):
            far_series.append(far_series[-1] * ((2 * k - 1) ** 2 - 4 * order**2) / (8 * k))
        # a square that is rounded once would be wrong by that in every term
        half, near = size / 2, torch.zeros_like(size)
        for term in reversed(near_series):
            near = torch.addcmul(torch.full_like(size, term), near * half, half)
        near = near * half if order else near
        far = _polynomial(1 / size, far_series) / math.sqrt(2 * math.pi)
        if is_scaled:
            near = near * torch.exp(-size)
        else:
            far = torch.exp(size) * far
        found = torch.where(size <= border, near, far / torch.sqrt(size))
        return torch.where(x < 0, -found, found) if order else found

    return function


_OWN |= {
    "i0": _bessel(0, False),
    "special_i0e": _bessel(0, True),
    "special_i1": _bessel(1, False),
    "special_i1e": _bessel(1, True),
}


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
