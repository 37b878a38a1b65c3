"""Warn of lost writes: in-place operations on a computed value, which change no parameter."""

from __future__ import annotations

import dis
import sys
import warnings
import weakref
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    dispatch_modes,
    functorch_active,
    has_values,
    is_tracing,
    version_of,
)

_PACKAGE = __name__.partition(".")[0]
# instructions that end a statement without use of its value: an expression, an item assignment
_DISCARDS = frozenset(("POP_TOP", "STORE_SLICE", "STORE_SUBSCR"))


def warn_of_lost_writes(layer: nn.Module, name: str, value: Tensor) -> None:
    """Warn if ``value`` is written in place, and then thrown away.

    ``layer.beta.fill_(0.1)`` writes into a tensor that was computed for this one statement. A
    tensor that lives on under a name, or that is used, is the user's own. Reads of the package
    itself are not followed.

    Args:
        layer: that computed the value.
        name: of the parameter.
        value: that is handed out.

    """
    if torch.compiler.is_compiling() or is_tracing() or functorch_active() or dispatch_modes():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name == "__getattr__":
        frame = frame.f_back
    version = version_of(value)
    if (
        frame is None
        or version is None
        or frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE
    ):
        return
    shared = value.detach()  # has the version of value
    weakref.finalize(value, _check, weakref.ref(layer), name, shared, version).atexit = False


def _check(reference: weakref.ref[Any], name: str, value: Tensor, version: int) -> None:
    """Warn where ``value`` was written to and is discarded, and the layer does not have it."""
    layer = reference()
    if layer is None or value._version == version:
        return
    frame = sys._getframe(2)  # behind weakref's own: where the tensor dies
    if dis.opname[frame.f_code.co_code[frame.f_lasti]] not in _DISCARDS:
        return
    with torch.no_grad():
        kept = getattr(layer, name)
        if has_values(kept) and torch.allclose(kept, value, 1e-3, 1e-6):
            return
    warnings.warn(
        f"{layer!r} is as it was: {name} is computed from raw_{name} each time it is read, and "
        f"what was written into it in place is lost. Assign it: layer.{name} = value.",
        stacklevel=3,
    )
