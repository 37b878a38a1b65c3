"""Warn of lost writes: in-place operations on a computed value, which change no parameter."""

from __future__ import annotations

import dis
import sys
import warnings
import weakref
from types import CodeType, FrameType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    dispatch_modes,
    functorch_active,
    has_values,
    is_jit_tracing,
)

Place: TypeAlias = tuple[CodeType, int]  # a code object, and an instruction in it

_PACKAGE = __name__.partition(".")[0] + "."
# What follows a read that leaves nothing to write to in the same statement, as a byte of code.
_ENDS = frozenset(
    bytes([dis.opmap[name]])
    for name in (
        "POP_TOP",
        "RETURN_VALUE",
        "STORE_DEREF",
        "STORE_FAST",
        "STORE_GLOBAL",
        "STORE_NAME",
    )
)
# the functions by which an attribute is read: that of a module, and of a connected layer's weight
_READERS = frozenset(("__getattr__", "read_connected_weight"))
_MOST_CACHES = 22  # bytes of an instruction's caches, which are zeros, and of the next opcode
_ASSIGNS_ITEM = frozenset(("STORE_SLICE", "STORE_SUBSCR"))


class _Read(NamedTuple):
    """A read of a parameter: the value that was handed out, and what tells that it was written to.

    Args:
        value: what was handed out; a reference that is gone would tell nothing.
        layer, name: whose parameter it is.
        place: where it was read.
        shared: a tensor with the memory and the version of the value.
        version: that of the value when it was read.
        source: what it is computed from.
    """

    value: weakref.ref[Tensor]
    layer: weakref.ref[nn.Module]
    name: str
    place: Place
    shared: Tensor
    version: int
    source: str


_reads: dict[int, _Read] = {}  # of values that live, by the id of the reference


def warn_of_lost_writes(
    layer: nn.Module, name: str, value: Tensor, source: str | None = None
) -> None:
    """Warn if ``value`` is written in place, and then thrown away.

    ``layer.beta.fill_(0.1)`` writes into a tensor that was computed for this one statement. A
    tensor that lives on under a name, or that is returned or used, is the user's own. Reads of the
    package itself are not followed.

    Args:
        layer: that computed the value.
        name: of the parameter.
        value: that is handed out.
        source: what it is computed from; ``None``: the raw parameter of a neuron.
    """
    if torch.compiler.is_compiling():
        return
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in _READERS:
        frame = frame.f_back
    if frame is None:
        return
    code, at = frame.f_code, frame.f_lasti
    if (
        code.co_code[at + 2 : at + 2 + _MOST_CACHES].lstrip(b"\0")[:1] in _ENDS
        or frame.f_globals.get("__name__", "").startswith(_PACKAGE)
        or functorch_active()
        or dispatch_modes()  # make_fx and torch.export among them
        or is_jit_tracing()
    ):
        return
    try:
        version = value._version
    except RuntimeError:  # inference mode counts no writes
        return
    reference = weakref.ref(value, _check)
    shared, source = value.detach(), source or f"raw_{name}"
    read = _Read(reference, weakref.ref(layer), name, (code, at), shared, version, source)
    _reads[id(reference)] = read


def _check(reference: weakref.ref[Tensor]) -> None:
    """Warn where the value was written to and is discarded, and the layer does not have it."""
    read = _reads.pop(id(reference), None)
    if read is None or read.shared._version == read.version:
        return
    layer, name = read.layer(), read.name
    frame = sys._getframe(1)  # where the tensor dies
    if layer is None or not _is_discarded(read.place, (frame.f_code, frame.f_lasti)):
        return
    with torch.no_grad():
        kept = getattr(layer, name)
        if has_values(kept) and torch.allclose(kept, read.shared, 1e-3, 1e-6):
            return
    label = repr(layer).partition("(\n")[0]  # without the modules inside
    warnings.warn(
        f"{label} is as it was: {name} is computed from {read.source} each time it is read, and "
        f"what was written into it in place is lost. Assign it: layer.{name} = value.",
        stacklevel=2,
    )


def _is_discarded(read: Place, end: Place) -> bool:
    """Whether the statement that read a tensor ended without use of its value.

    It does where an expression is a statement, and where an item is assigned: to the tensor, not
    the tensor to something, for what was written into before has been called in between.
    """
    (code, first), (last_code, last) = read, end
    name = dis.opname[last_code.co_code[last]]
    here = code is last_code
    between = [dis.opname[each] for each in code.co_code[first + 2 : last : 2]] if here else []
    if name == "POP_TOP":
        return not any(each.startswith("STORE") for each in between)
    return here and name in _ASSIGNS_ITEM and not any("CALL" in each for each in between)
