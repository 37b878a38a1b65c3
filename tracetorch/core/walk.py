"""Walk over a model: find every module in it, however deeply it is hidden.

PyTorch's own ``named_modules`` sees what is registered; a layer in a plain list, a dict or an
attribute's object is found here. Objects are looked at, never called: no property, ``__iter__`` or
``__getattr__`` runs, and ``type(x)`` decides. Inside ``torch.compile`` registered ones are walked.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from types import (
    BuiltinMethodType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler


class Opaque:
    """Base of objects that the walk does not enter: they hold no module."""

    __slots__ = ()


# Attributes that every module has and that can hold no module of the model, hooks above all.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
# Objects of these and of the standard library are not walked, but for modules and containers: they
# can hold half of the process (a trainer, a logger), and none is a part of a model.
_CONTAINERS_IN = ("argparse", "collections", "functools", "queue", "types")
_FOREIGN_PACKAGES = frozenset({"lightning", "numpy", "pandas", "pytorch_lightning", "torch"})
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
METHODS = (MethodType, BuiltinMethodType, MethodWrapperType)
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_TRANSPARENT = (nn.Module, *CONTAINERS, np.ndarray, *METHODS)
_OPAQUE = (Opaque, type, ModuleType, logging.Logger, torch.Tensor, Dataset, DataLoader, Sampler)
Tensors: TypeAlias = list[tuple[str, torch.Tensor]]
# A longer container is data, a replay buffer say: modules in it are found, nothing deeper.
_LONG = 1000


@lru_cache(maxsize=4096)
def _is_opaque(kind: Any) -> bool:
    """Whether objects of a type are not entered."""
    if issubclass(kind, _TRANSPARENT):
        return False
    if issubclass(kind, _OPAQUE):
        return True
    name = kind.__module__ if isinstance(kind.__module__, str) else ""
    package = name.partition(".")[0]
    if package in _FOREIGN_PACKAGES:
        return True
    if package not in sys.stdlib_module_names or name in _CONTAINERS_IN:
        return False
    # a user's own trace.py or queue.py shares its name with a module of the standard library
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or (file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file)


class Walk(NamedTuple):
    """All that can be reached from a root, each once, with its dotted path."""

    modules: list[tuple[str, nn.Module]]  # the modules, the root first
    owners: list[tuple[str, object]]  # containers and plain objects on the way
    # tensors held by any of them, neither parameters nor buffers, once for each place
    tensors: list[tuple[str, torch.Tensor]]


def _parts_of(owner: Any, path: str, tensors: Tensors) -> list[tuple[str, object]]:
    """Parts of ``owner`` to enter, by name; its own code does not run. Adds to ``tensors``."""
    kind: Any = type(owner)
    descriptor = _dict_descriptor(kind)
    for container in CONTAINERS:
        if issubclass(kind, container):
            items = _items(owner, container, path, tensors)
            if kind is not container and descriptor is not None:  # a class of its own
                items.append(("__dict__", descriptor.__get__(owner)))
            return items
    if issubclass(kind, np.ndarray):
        of_objects = owner.dtype.hasobject and owner.dtype.names is None
        return _items(list(owner.reshape(-1)) if of_objects else [], list, path, tensors)
    is_module = issubclass(kind, nn.Module)
    # copies, because another thread may set and delete attributes meanwhile
    attributes: dict[str, Any] = {} if descriptor is None else dict(descriptor.__get__(owner))
    if issubclass(kind, METHODS):
        # a module is that which holds its method, or one above it
        if not issubclass(type(owner.__self__), nn.Module):
            attributes["__self__"] = owner.__self__
    elif _slots_of(kind):
        attributes |= slot_values(owner)
    # submodules first, and under their own names
    found = list(dict(attributes.get("_modules", {})).items()) if is_module else []
    for name, value in attributes.items():
        if is_module and name in MODULE_ATTRIBUTES:
            continue
        if not _is_opaque(type(value)):  # type: ignore[arg-type]
            found.append((name, value))
        elif issubclass(type(value), torch.Tensor):
            tensors.append((join_path(path, name), value))
    return found


def _items(owner: Any, container: Any, path: str, tensors: Tensors) -> list[tuple[str, object]]:
    """Items of a container under their keys or positions."""
    values = list(dict.values(owner) if container is dict else container.__iter__(owner))
    kinds: set[Any] = set(map(type, values))
    if any(issubclass(kind, torch.Tensor) for kind in kinds):
        tensors += [(path, value) for value in values if issubclass(type(value), torch.Tensor)]
    if all(map(_is_opaque, kinds)):
        return []
    keys: Iterable[object] = dict.keys(owner) if container is dict else range(len(values))
    if container in (set, frozenset) and len(values) > 1:
        keys = [f"{{{i}}}" for i in keys]  # a set has no order: the braces say so
    return [
        (str(key) if type(key) in (str, int) else f"<{type(key).__name__}>", value)
        for key, value in zip(list(keys), values, strict=True)
        if len(values) <= _LONG or issubclass(type(value), nn.Module)
    ]


@lru_cache(maxsize=1024)
def _dict_descriptor(kind: Any) -> GetSetDescriptorType | MemberDescriptorType | None:
    """Return the descriptor of ``__dict__``, unless a class has made a property of that name."""
    found = next((vars(b)["__dict__"] for b in kind.__mro__ if "__dict__" in vars(b)), None)
    return found if isinstance(found, (GetSetDescriptorType, MemberDescriptorType)) else None


@lru_cache(maxsize=1024)
def _slots_of(kind: Any) -> dict[str, MemberDescriptorType]:
    """Return the slots of a class and its bases."""
    slots = [item for base in reversed(kind.__mro__) for item in vars(base).items()]
    return {n: s for n, s in slots if isinstance(s, MemberDescriptorType) and n != "__dict__"}


def slot_values(owner: object) -> dict[str, object]:
    """Return what the slots of an object hold, those that are filled."""
    found, kind = {}, cast(Any, type(owner))
    for name, slot in _slots_of(kind).items():
        with suppress(AttributeError):  # of one that is not
            found[name] = slot.__get__(owner)
    return found


def walk(root: object, *, closed: type[nn.Module] | None = None) -> Walk:
    """Find all that is reachable from ``root``; modules of the type ``closed`` are not entered."""
    found: list[tuple[str, nn.Module]] = []
    owners: list[tuple[str, object]] = []
    tensors: Tensors = []
    seen: set[int] = set()
    stack: list[tuple[str, object]] = [("", root)]
    while stack:
        path, owner = stack.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if issubclass(type(owner), nn.Module):  # not isinstance: a mock may claim to be one
            found.append((path, cast(nn.Module, owner)))
            if closed is not None and owner is not root and isinstance(owner, closed):
                continue
        else:
            owners.append((path, owner))
        # reversed, because the stack gives back the last one first
        for name, part in reversed(_parts_of(owner, path, tensors)):
            if not _is_opaque(type(part)):  # type: ignore[arg-type]
                stack.append((f"{path}.{name}" if path else name, part))
    return Walk(found, owners, tensors)


def join_path(path: str, name: str) -> str:
    """Return the dotted path of a part; that of the root, and of the part itself, is empty."""
    return f"{path}.{name}" if path and name else path or name


def named_modules(
    root: object, *, closed: type[nn.Module] | None = None
) -> list[tuple[str, nn.Module]]:
    """List every module reachable from ``root``, itself first, each once; ``closed`` as there."""
    return walk(root, closed=closed).modules


def named_parameters(root: object) -> dict[str, nn.Parameter]:
    """Return every parameter by path, each once, those of unregistered modules too."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in named_modules(root):
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(id(parameter), (join_path(path, name), parameter))
    return dict(found.values())


def modules_of(
    root: nn.Module, *, closed: type[nn.Module] | None = None
) -> list[tuple[str, nn.Module]]:
    """List modules as :func:`named_modules`, in ``torch.compile`` those that are registered."""
    if closed is not None and isinstance(root, closed):
        return [("", root)]
    if not torch.compiler.is_dynamo_compiling():
        return named_modules(root, closed=closed)
    found: list[tuple[str, nn.Module]] = []
    closed_paths: list[str] = []
    for path, module in root.named_modules():
        if not any(path.startswith(f"{outer}.") for outer in closed_paths):
            found.append((path, module))
            if closed is not None and isinstance(module, closed):
                closed_paths.append(path)
    return found


def hidden_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the outermost modules in ``root`` that are not registered in it, with their paths."""
    known = {id(module) for module in root.modules()}
    found: list[tuple[str, nn.Module]] = []
    for path, module in named_modules(root):
        if id(module) not in known:
            found.append((path, module))
            known.update(id(inner) for inner in module.modules())
    return found


def path_on_stack(layer: nn.Module) -> str | None:
    """Find the path of ``layer`` in the outermost module on the call stack, for messages."""
    callers: list[nn.Module] = []
    frame = None if torch.compiler.is_dynamo_compiling() else sys._getframe(1)
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
