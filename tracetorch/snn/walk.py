"""The one walk over a model: every module in it, however deeply it is hidden.

PyTorch's own ``named_modules`` sees what is registered. A stateful layer in a plain list, a dict, a
dataclass or an object held as an attribute is invisible to it; here it is found. Objects are looked
at, never called: no property, no overridden ``__iter__``, no ``__getattr__`` runs.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import (
    FrameType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

# Attributes every module has that can hold no module of the model, hooks above all.
_MODULE_OWN = frozenset(vars(nn.Module()))
# Objects of these packages and of the standard library are not walked: they can hold half of the
# process (a trainer, a logger), and none is a part of a model. Modules and containers always are.
_FOREIGN = frozenset({"lightning", "numpy", "pandas", "pytorch_lightning", "torch"})
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_WALKED = (nn.Module, *_CONTAINERS, SimpleNamespace, UserDict, UserList, ChainMap)
_PASSED_OVER = (type, ModuleType, logging.Logger, torch.Tensor, Dataset, DataLoader, Sampler)
# A longer container is data, a replay buffer say: modules in it are found, nothing deeper.
_LONG = 1000


@lru_cache(maxsize=4096)
def _opaque(kind: type) -> bool:
    """Whether objects of a type are passed over."""
    if issubclass(kind, _WALKED):
        return False
    if issubclass(kind, _PASSED_OVER):
        return True
    name = kind.__module__ if isinstance(kind.__module__, str) else ""
    package = name.partition(".")[0]
    if package in _FOREIGN:
        return True
    if package not in sys.stdlib_module_names:
        return False
    # a user's own trace.py or queue.py shares its name with a module of the standard library
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or (file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file)


def _children(owner: Any) -> Iterable[tuple[str, object]]:
    """Named parts of ``owner`` worth a look, read without running any of its code."""
    kind = type(owner)
    for container in _CONTAINERS:
        if issubclass(kind, container):
            return _members(owner, container)
    return _attributes(owner)


def _members(owner: Any, container: Any) -> Iterable[tuple[str, object]]:
    values = list(dict.values(owner) if container is dict else container.__iter__(owner))
    kinds = set(map(type, values))
    if all(_opaque(kind) for kind in kinds):
        return ()
    keys: Iterable[object] = range(len(values))
    if container is dict:
        keys = list(dict.keys(owner))
    elif container in (set, frozenset) and len(values) > 1:
        return ((f"{{{i}}}", value) for i, value in enumerate(values))
    if len(values) > _LONG:
        return (
            (_spelled(key), value)
            for key, value in zip(keys, values, strict=True)
            if issubclass(type(value), nn.Module)
        )
    return ((_spelled(key), value) for key, value in zip(keys, values, strict=True))


def _spelled(key: object) -> str:
    return str(key) if type(key) in (str, int) else f"<{type(key).__name__}>"


def _attributes(owner: object) -> Iterator[tuple[str, object]]:
    kind = type(owner)
    is_module = issubclass(kind, nn.Module)
    attributes = _own_dict(owner, kind)
    if is_module:
        yield from attributes.get("_modules", {}).items()
    for name, value in list(attributes.items()):
        if not (is_module and name in _MODULE_OWN):
            yield name, value
    for name, slot in _slots(kind):  # type: ignore[arg-type]
        try:
            yield name, slot.__get__(owner)
        except AttributeError:  # a slot that was never filled
            continue


def _own_dict(owner: object, kind: type) -> dict[str, Any]:
    """The instance's ``__dict__``, unless its class has made a property of that name."""
    for base in kind.__mro__:
        if "__dict__" in vars(base):
            found = vars(base)["__dict__"]
            own = isinstance(found, (GetSetDescriptorType, MemberDescriptorType))
            return found.__get__(owner) if own else {}
    return {}


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[tuple[str, MemberDescriptorType], ...]:
    return tuple(
        (name, slot)
        for base in kind.__mro__
        for name, slot in vars(base).items()
        if isinstance(slot, MemberDescriptorType) and name != "__dict__"
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
            for name, part in _children(owner)
            if not _opaque(type(part))  # type: ignore[arg-type]
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
    return _path_uncompiled(layer) if torch.compiler.is_dynamo_compiling() else _path(layer)


def _path(layer: nn.Module) -> str | None:
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


# as torch.compiler.disable, but without importing the compiler before it is used
_path_uncompiled = torch._disable_dynamo(_path)  # type: ignore[attr-defined]


def hidden_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost modules in ``root`` that are not registered in it, and their paths."""
    known = {id(module) for module in root.modules()}
    found: list[tuple[str, nn.Module]] = []
    for path, module in named_modules(root):
        if id(module) not in known:
            found.append((path, module))
            known.update(id(inner) for inner in module.modules())
    return found
