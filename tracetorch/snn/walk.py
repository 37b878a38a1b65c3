"""The one walk over a model: every module in it, however deeply it is hidden.

PyTorch's own ``named_modules`` sees what is registered. A stateful layer in a plain list, a dict, a
dataclass or an object held as an attribute is invisible to it; here it is found. Objects are looked
at, never called: no property, no overridden ``__iter__``, no ``__getattr__`` runs.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import FrameType, MemberDescriptorType, SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

# Attributes every module has that can hold no module of the model, hooks above all.
_MODULE_OWN = frozenset(vars(nn.Module())) - {"_modules"}
# Objects of these packages are not walked: they can hold half of the process (a trainer, a logger),
# and none of them is a part of a model. Modules and the containers below are walked all the same.
_FOREIGN = frozenset(sys.stdlib_module_names) | {
    "lightning",
    "numpy",
    "pandas",
    "pytorch_lightning",
    "torch",
}
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, deque, SimpleNamespace)
_DATA: tuple[type, ...] = (Dataset, DataLoader, Sampler)


class _Opaque(dict[type, bool]):
    """Whether objects of a type are passed over; decided once per type and walk."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = opaque = self._decide(kind)
        return opaque

    @staticmethod
    def _decide(kind: type) -> bool:
        if issubclass(kind, (nn.Module, *_CONTAINERS)):
            return False
        if issubclass(kind, (type, torch.Tensor, *_DATA)):
            return True
        package = kind.__module__
        return isinstance(package, str) and package.partition(".")[0] in _FOREIGN


def _children(owner: Any, opaque: _Opaque) -> Iterable[tuple[str, object]]:
    """Named parts of ``owner``, read without running any of its code."""
    kind = type(owner)
    for container in (dict, list, tuple, set, frozenset, deque):
        if issubclass(kind, container):
            values = dict.values(owner) if container is dict else container.__iter__(owner)
            if all(opaque[each] for each in set(map(type, values))):  # a long list of numbers
                return ()
            if container is dict:
                return ((str(key), value) for key, value in dict.items(owner))
            return ((str(i), value) for i, value in enumerate(container.__iter__(owner)))
    return _attributes(owner)


def _attributes(owner: object) -> Iterator[tuple[str, object]]:
    kind = type(owner)
    is_module = issubclass(kind, nn.Module)
    try:
        attributes = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        attributes = {}
    if is_module:
        yield from attributes.get("_modules", {}).items()
    for name, value in list(attributes.items()):
        if not (is_module and (name in _MODULE_OWN or name == "_modules")):
            yield name, value
    for name, slot in _slots(kind):  # type: ignore[arg-type]
        try:
            yield name, slot.__get__(owner)
        except AttributeError:  # a slot that was never filled
            continue


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[tuple[str, MemberDescriptorType], ...]:
    return tuple(
        (name, slot)
        for base in kind.__mro__
        for name, slot in vars(base).items()
        if isinstance(slot, MemberDescriptorType)
    )


def named_modules(
    root: object, *, closed: type[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Every module reachable from ``root``, itself first, each once, with its dotted path.

    Args:
        root: a module, or anything that holds some.
        closed: modules of this type, the root apart, are found but not looked into.

    """
    seen: set[int] = set()
    opaque = _Opaque()
    stack: list[tuple[str, object]] = [("", root)]
    while stack:
        path, owner = stack.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if issubclass(type(owner), nn.Module):  # not isinstance: a mock may claim to be one
            yield path, cast(nn.Module, owner)
            if closed is not None and owner is not root and isinstance(owner, closed):
                continue
        parts = [
            (f"{path}.{name}" if path else name, part)
            for name, part in _children(owner, opaque)
            if not opaque[type(part)]
        ]
        stack.extend(reversed(parts))


def modules_of(
    root: nn.Module, *, closed: type[nn.Module] | None = None
) -> list[tuple[str, nn.Module]]:
    """:func:`named_modules`, and inside ``torch.compile`` those of them that are registered.

    Args:
        root: a module.
        closed: modules of this type, the root too, are found but not looked into.
    """
    if closed is not None and isinstance(root, closed):
        return [("", root)]
    if not torch.compiler.is_dynamo_compiling():
        return list(named_modules(root, closed=closed))
    found: list[tuple[str, nn.Module]] = []
    shut: list[str] = []
    for path, module in root.named_modules():
        if not any(path.startswith(f"{outer}.") for outer in shut):
            found.append((path, module))
            if closed is not None and isinstance(module, closed):
                shut.append(path)
    return found


def path_on_stack(layer: nn.Module) -> str | None:
    """The path of ``layer`` in the outermost module that is being called, for messages.

    A layer does not know where it stands. When it must complain, the modules whose ``forward`` led
    to it are still on the stack, and the outermost of them names it best.
    """
    callers: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if issubclass(type(caller), nn.Module) and caller is not layer:
            callers.append(cast(nn.Module, caller))
        frame = frame.f_back
    for caller in reversed(callers):
        for path, module in named_modules(caller):
            if module is layer:
                return path
    return None
