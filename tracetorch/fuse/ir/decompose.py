"""Decompose PyTorch operations without a lowering rule into operations that have one.

At NaN PyTorch has two gradients of ``elu``, ``celu``, ``selu``, ``hardtanh`` and ``logit``: one
where it computes in vectors, another in what is left over of a tensor. That of the vectors, which
most values have, is the one here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, decomposition_of


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, x > 0)


def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    grown = x + alpha * scale if is_result else alpha * scale * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, grad * input_scale * grown)


# Our own, where PyTorch has none, where its own depends on the device, or where it is not what
# PyTorch computes for NaN and zeros.
_OWN: dict[str, Callable[..., Any]] = {
    "_conj_physical": torch.clone,
    "elu_backward": _elu_backward,
    "frac": lambda x: x - torch.trunc(x),
    "heaviside": _heaviside,
}
# Those of PyTorch's that are not what it computes for NaN and zeros.
_REFUSED = frozenset(
    {
        *("angle", "hardshrink_backward", "hardsigmoid_backward", "hardswish_backward"),
        *("log_sigmoid_backward", "log_sigmoid_forward", "smooth_l1_loss_backward"),
        *("soft_margin_loss_backward", "softshrink", "softshrink_backward"),
    }
)


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return a function that computes an operation by simpler ones, in place too, or ``None``."""
    name = operation._schema.name.removeprefix("aten::")
    if operation._schema.is_mutable:
        name = name.removesuffix("_")
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, operation._overloadname, None)
    if name in _REFUSED:
        return None
    found = _OWN.get(name) or decomposition_of(operation)
    if found is None and operation is not None and operation.has_kernel_for_dispatch_key(COMPOSITE):
        return operation.decompose  # type: ignore[no-any-return]
    return found
