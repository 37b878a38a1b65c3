"""Tell a whole sequence that was given to one step from one step of tokens, by who calls a layer.

``[T, B, features]``, the classic mistake, and ``[B, tokens, features]`` look alike.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.walk import named_modules

_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
# what works on the tokens of a sample, in the name of a class or of a function
_TOKEN_WORDS = ("attention", "attn", "embedding", "layernorm", "mixer", "rmsnorm", "transformer")
_PRODUCTS = frozenset(("bmm", "einsum", "matmul", "scaled_dot_product_attention"))


def is_one_step(layer: nn.Module, x: Tensor) -> bool | None:
    """Tell from the call stack whether ``x`` is one step: ``True``, ``False``, or cannot be known.

    It is one step where the package itself calls, where the model has attention or a norm over
    features, and where the model's input has another layout: an image cut into tokens, indices.
    It is none where no loop of the user leads to the call, for then it is the only step.
    ``None`` inside a loop, over time or over batches, and for a part of a longer tensor.

    Args:
        layer: that is called.
        x: its input.
    """
    outermost, given = layer, x
    uncertain = by_package = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        caller = frame.f_locals.get("self")
        in_module = issubclass(type(caller), nn.Module)
        if package == "torch":
            if in_module and frame.f_code.co_name == "_call_impl":
                outermost = caller  # type: ignore[assignment]
                arguments = (*frame.f_locals["args"], *frame.f_locals["kwargs"].values())
                given = next((a for a in arguments if isinstance(a, Tensor)), given)
                by_package = False
        elif package == "tracetorch":
            by_package |= not in_module
        elif not frame.f_code.co_filename.startswith(_INSTALLED):
            if in_module and _multiplies_activations(frame):
                return True
            uncertain |= _is_in_loop(frame)
        frame = frame.f_back
    if by_package or not given.is_floating_point() or given.shape[:2] != x.shape[:2]:
        return True
    if any(_works_on_tokens(module) for _, module in named_modules(outermost)):
        return True
    return None if uncertain or _is_part_of_longer(given) else False


def clears_by_user() -> bool:
    """Whether states are cleared by the user, and not for a measurement that restores them."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package, _, room = frame.f_globals.get("__name__", "").partition(".")
        if package != "tracetorch":
            return True
        if not room.startswith("snn."):
            return False
        frame = frame.f_back
    return True


def _works_on_tokens(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in _TOKEN_WORDS)


def _multiplies_activations(frame: FrameType) -> bool:
    """Whether a ``forward`` multiplies tensors, as attention written by hand does."""
    if not _PRODUCTS.isdisjoint(frame.f_code.co_names):
        return True
    return any(
        each.argrepr == "@" or each.opname == "BINARY_MATRIX_MULTIPLY"
        for each in dis.get_instructions(frame.f_code)
    )


def _is_in_loop(frame: FrameType) -> bool:
    """Whether what a frame runs now lies between a jump back and its target."""
    at = frame.f_lasti
    return any(
        each.opcode in _JUMPS and each.argval <= at <= each.offset
        for each in dis.get_instructions(frame.f_code)
    )


def _is_part_of_longer(x: Tensor) -> bool:
    """Whether a tensor is an element of one with one more dimension, in front or second."""
    base: Any = None if torch.is_inference_mode_enabled() else x._base
    if base is None or base.ndim != x.ndim + 1:
        return False
    return x.shape in (base.shape[1:], (*base.shape[:1], *base.shape[2:]))
