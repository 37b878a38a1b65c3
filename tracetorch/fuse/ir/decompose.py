"""Decompose PyTorch operations without a lowering rule into operations that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tracetorch.core.torch_private import decomposition_of

# Our own, for operations of which PyTorch has none.
_OWN: dict[str, Callable[..., Any]] = {}


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return a function that computes an operation by simpler ones, or ``None``.

    Args:
        operation: overload of an operation, such as ``torch.ops.aten.gelu.default``; for one in
            place the function returns the new value.
    """
    name = operation._schema.name.removeprefix("aten::")
    if name in _OWN:
        return _OWN[name]
    if operation._schema.is_mutable:
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        operation = getattr(packet, operation._overloadname, None)
    return decomposition_of(operation)
