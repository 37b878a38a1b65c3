"""Warn of lost writes: in-place operations on a computed value, which change no parameter."""

from __future__ import annotations

import dis
import sys
import warnings
import weakref
from types import CodeType, FrameType
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    dispatch_modes,
    functorch_active,
    has_values,
    is_jit_tracing,
    version_of,
)

Place: TypeAlias = tuple[CodeType, int]  # a code object, and an instruction in it

_PACKAGE = __name__.partition(".")[0]
_ASSIGNS_ITEM = frozenset(("STORE_SLICE", "STORE_SUBSCR"))


class _Read(weakref.ref[Tensor]):
    """A read of a parameter: the value that was handed out, and what tells that it was written to.

    As :class:`weakref.finalize`, at a fraction of its time.
    """

    __slots__ = ("layer", "name", "place", "shared", "version")

    layer: weakref.ref[nn.Module]
    name: str
    place: Place
    shared: Tensor  # with the version of the value
    version: int


_reads: dict[int, _Read] = {}  # of values that live; a reference that is gone tells nothing


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
    if torch.compiler.is_compiling():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name == "__getattr__":
        frame = frame.f_back
    if (
        frame is None
        or frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE
        or functorch_active()
        or dispatch_modes()  # make_fx and torch.export among them
        or is_jit_tracing()
    ):
        return
    version = version_of(value)
    if version is None:
        return
    read = _Read(value, _check)
    read.layer, read.name, read.place = weakref.ref(layer), name, (frame.f_code, frame.f_lasti)
    read.shared, read.version = value.detach(), version
    _reads[id(read)] = read


def _check(read: _Read) -> None:
    """Warn where the value was written to and is discarded, and the layer does not have it."""
    _reads.pop(id(read), None)
    layer, value, name = read.layer(), read.shared, read.name
    if layer is None or value._version == read.version:
        return
    frame = sys._getframe(1)  # where the tensor dies
    if not _is_discarded(read.place, (frame.f_code, frame.f_lasti)):
        return
    with torch.no_grad():
        kept = getattr(layer, name)
        if has_values(kept) and torch.allclose(kept, value, 1e-3, 1e-6):
            return
    warnings.warn(
        f"{layer!r} is as it was: {name} is computed from raw_{name} each time it is read, and "
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
