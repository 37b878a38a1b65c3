"""Fingerprint a callable: everything that its behaviour can depend on, as one hashable value.

Numbers that a callable holds, closes over or reads from its module are compiled into a kernel, so
they are part of the kernel's key: an annealed slope gets a new program, or finds the old one when
it returns.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.functions import (
    is_self_contained,
    is_stable,
    is_stable_class,
    is_stable_module,
    referenced_names,
)
from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.graph import Unfusable

# Compared by value. Floats are not among them: as text, NaN equals itself and -0.0 is not 0.0.
_IMMUTABLE = (type(None), bool, int, str, bytes, complex, enum.Enum, torch.dtype, torch.device)
# Class attributes of these types are settings that methods may read.
_SETTINGS = (float, *_IMMUTABLE, tuple, list, set, frozenset, dict, type)


def fingerprint(name: str, value: object) -> Hashable:
    """Return a hashable value that changes whenever the behaviour of ``value`` may change.

    Args:
        name: name of ``value`` in the error message.
        value: a constant, a surrogate, any callable.

    Raises:
        Unfusable: it holds something whose changes cannot be detected, such as a tensor.
    """
    if isinstance(value, Surrogate) and is_stable_class(type(value)):  # type: ignore[arg-type]
        # The common case, made fast: a surrogate of this package is described by its fields.
        fields = [v.hex() if isinstance(v, float) else (type(v), v) for v in vars(value).values()]
        return type(value), tuple(fields)
    if type(value) is types.FunctionType and is_self_contained(value):
        return value, value.__code__
    return _Fingerprinter(name).fingerprint(value)


class _Fingerprinter:
    """Walk over everything that a value can reach, for one :func:`fingerprint`.

    Args:
        name: name of the value in the error message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # Number of each object on the way, by id; with the object, whose id is its own while it
        # lives. A second visit gives the number: objects may refer to each other in a circle.
        self.visited: dict[int, tuple[int, object]] = {}

    def fingerprint(self, value: Any) -> Hashable:
        """Return the fingerprint of a number, container, callable or object."""
        if isinstance(value, float):
            return value.hex()
        if isinstance(value, _IMMUTABLE):
            return type(value), value
        if id(value) in self.visited:
            return "visited", self.visited[id(value)][0]
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
            return value
        # From here on there may be a circle.
        self.visited[id(value)] = len(self.visited), value
        if isinstance(value, (tuple, list, set, frozenset)):
            return type(value), self._all(value)
        if isinstance(value, Mapping):
            return tuple(self._all(item) for item in value.items())
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self._all((value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            return self._all((value.func, value.args, value.keywords))
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _all(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple(self.fingerprint(value) for value in values)

    def _function(self, function: types.FunctionType) -> Hashable:
        """Return the fingerprint of a function: code, closure, defaults and globals it names."""
        if is_self_contained(function):
            return function, function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        # A recursive inner function closes over itself.
        closure = self._all(content for content in cells if content is not function)
        defaults = self.fingerprint((function.__defaults__, function.__kwdefaults__ or {}))
        # Its globals stay; what it closes over is its own.
        if is_stable(function):
            return function, function.__code__, closure, defaults
        fingerprints: list[Hashable] = []
        names = referenced_names(function.__code__)
        for name in names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                fingerprints.append(self.fingerprint(value))
            elif not is_stable_module(value):
                fingerprints += self._module(value, names)
        # The code, not the function: a lambda that is made again is the same to a kernel.
        return function.__code__, closure, defaults, tuple(fingerprints)

    def _module(self, module: types.ModuleType, names: tuple[str, ...]) -> list[Hashable]:
        """Return the fingerprints of what code with ``names`` can read of a module.

        In ``settings.SLOPE`` both are names of the code; so is ``settings.rates.SLOPE``.
        """
        fingerprints: list[Hashable] = []
        for name in names:
            member = vars(module).get(name)
            if not isinstance(member, types.ModuleType):
                fingerprints.append(self.fingerprint(member))
            elif member is not module and not is_stable_module(member):
                fingerprints += self._module(member, names)
        return fingerprints

    def _class(self, kind: type) -> Hashable:
        """Return the fingerprint of a class: its methods and settings, inherited ones too."""
        parts: list[Hashable] = [kind]
        for base in kind.__mro__:
            if is_stable(base):
                continue
            for name, attribute in vars(base).items():
                # Unwrap methods to the functions that are written in the class.
                if isinstance(attribute, (staticmethod, classmethod)):
                    attribute = attribute.__func__
                elif isinstance(attribute, property):
                    attribute = attribute.fget
                if isinstance(attribute, types.FunctionType):
                    # what `dataclass` generates reads nothing but the fields
                    generated = attribute.__code__.co_filename == "<string>"
                    if not generated and attribute.__name__ != "__reduce__":
                        parts.append((name, self._function(attribute)))
                elif isinstance(attribute, _SETTINGS) and not name.startswith("__"):
                    parts.append((name, self.fingerprint(attribute)))
        return tuple(parts)

    def _object(self, value: Any) -> Hashable:
        """Return the fingerprint of an object: its class and all of its attributes."""
        if isinstance(value, (Tensor, nn.Module)) or not hasattr(value, "__dict__"):
            kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
            raise Unfusable(
                f"its {self.name!r} holds a {kind}, whose changes a compiled kernel would not see"
            )
        # Attributes in slots are not in vars().
        slots = {
            slot: getattr(value, slot, None)
            for kind in type(value).__mro__
            for slot in getattr(kind, "__slots__", ())
            if slot not in ("__dict__", "__weakref__")
        }
        attributes = {**vars(value), **slots}
        fingerprints = tuple((name, self.fingerprint(part)) for name, part in attributes.items())
        return self.fingerprint(type(value)), fingerprints
