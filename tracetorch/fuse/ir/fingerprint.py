"""Fingerprint a callable: everything that its behaviour can depend on, as one hashable value.

Numbers that a callable holds, closes over or reads from its module are compiled into a kernel, so
they are part of the kernel's key: an annealed slope gets a new program, or finds the old one when
it returns.
"""

from __future__ import annotations

import dis
import enum
import functools
import types
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.graph import Unfusable

# Compared by value. Floats are not among them: as text, NaN equals itself and -0.0 is not 0.0.
_IMMUTABLE = (type(None), bool, int, str, bytes, complex, enum.Enum, torch.dtype, torch.device)
# Class attributes of these types are settings that methods may read.
_SETTINGS = (float, *_IMMUTABLE, tuple, list, set, frozenset, dict, type)
# Code of these packages does not change while the process runs.
_STABLE_PACKAGES = (
    "builtins",
    "enum",
    "functools",
    "math",
    "numpy",
    "torch",
    "tracetorch",
    "typing",
)


def fingerprint(name: str, value: object) -> Hashable:
    """Return a hashable value that changes whenever the behaviour of ``value`` may change.

    Args:
        name: name of ``value`` in the error message.
        value: a constant, a surrogate, any callable.

    Raises:
        Unfusable: it holds something whose changes cannot be detected, such as a tensor.

    Example:
        >>> scaled = lambda slope: lambda u: slope * u
        >>> fingerprint("spike", scaled(2.0)) == fingerprint("spike", scaled(2.0))
        True
        >>> fingerprint("spike", scaled(2.0)) == fingerprint("spike", scaled(3.0))
        False

    """
    if isinstance(value, Surrogate) and _is_stable_class(type(value)):  # type: ignore[arg-type]
        # The common case, made fast: a surrogate of this package is described by its fields.
        fields = [v.hex() if isinstance(v, float) else (type(v), v) for v in vars(value).values()]
        return type(value), tuple(fields)
    if type(value) is types.FunctionType and _is_self_contained(value):
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
        if _is_self_contained(function):
            return function, function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        # A recursive inner function closes over itself.
        closure = self._all(content for content in cells if content is not function)
        defaults = self.fingerprint((function.__defaults__, function.__kwdefaults__ or {}))
        # Its globals stay; what it closes over is its own.
        if _is_stable(function):
            return function, function.__code__, closure, defaults
        fingerprints: list[Hashable] = []
        names = _referenced_names(function.__code__)
        for name in names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                fingerprints.append(self.fingerprint(value))
            elif not _is_stable_module(value):
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
            elif member is not module and not _is_stable_module(member):
                fingerprints += self._module(member, names)
        return fingerprints

    def _class(self, kind: type) -> Hashable:
        """Return the fingerprint of a class: its methods and settings, inherited ones too."""
        parts: list[Hashable] = [kind]
        for base in kind.__mro__:
            if _is_stable(base):
                continue
            for name, attribute in vars(base).items():
                # Unwrap methods to the functions that are written in the class.
                if isinstance(attribute, (staticmethod, classmethod)):
                    attribute = attribute.__func__
                elif isinstance(attribute, property):
                    attribute = attribute.fget
                if isinstance(attribute, types.FunctionType) and not _is_generated(attribute):
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


def reads_nothing(function: Any, callers: tuple[Any, ...] = ()) -> bool:
    """Whether a function or class computes from its arguments alone, and always will.

    True for stable packages, and for a plain function without closure and defaults that names no
    globals but such functions and stable modules. Functions that call each other in a circle are
    not followed, and count as others do.

    Args:
        function: the function or class.
        callers: the functions through which it was reached.
    """
    if _is_stable(function):
        return True
    if not isinstance(function, types.FunctionType) or _holds_values(function):
        return False
    # torch.compile warns of a cache, and guards on what it follows here
    names_of = _names_in if torch.compiler.is_compiling() else _referenced_names
    names = names_of(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    callers = (*callers, function)
    return all(
        _is_stable_module(value)
        if isinstance(value, types.ModuleType)
        else callable(value)
        and not any(value is caller for caller in callers)
        and reads_nothing(value, callers)
        for value in values
    )


def helpers(function: Any) -> list[tuple[dict[str, Any], str, object]]:
    """Return the global callables that a function with :func:`reads_nothing` calls.

    A global name can be rebound, as a notebook does when a cell runs again; who keeps a compiled
    function compares these at each call.

    Returns:
        For each, the globals that hold it, its name there, and the callable; ``None`` where the
        name is that of a builtin, which a global of the same name would hide.

    """
    if _is_stable(function):
        return []
    callables: list[tuple[dict[str, Any], str, object]] = []
    for name in _global_names(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, types.ModuleType):
            callables.append((function.__globals__, name, value))
            callables += [] if value is None else helpers(value)
    return callables


def contents(function: Any) -> tuple[object, ...]:
    """Return what can be replaced in a function while it stays the same object.

    An editor that reloads modules, as IPython's ``%autoreload``, does so: whoever holds the
    function then runs the new code.
    """
    if not isinstance(function, types.FunctionType):
        return ()
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _is_stable(owner: Any) -> bool:
    """Whether a function or class is of a stable package."""
    return _package(getattr(owner, "__module__", "")) in _STABLE_PACKAGES


def _is_stable_module(module: types.ModuleType) -> bool:
    return _package(module.__name__) in _STABLE_PACKAGES


def _package(module_name: object) -> str:
    return str(module_name).partition(".")[0]


@functools.lru_cache(maxsize=1024)
def _is_stable_class(kind: type) -> bool:
    """Whether a class and its bases are of stable packages."""
    return all(_is_stable(base) for base in kind.__mro__)


def _holds_values(function: types.FunctionType) -> bool:
    """Whether a function has a closure or defaults."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__)


def _is_self_contained(function: types.FunctionType) -> bool:
    """Whether a function is of a stable package, without closure or defaults."""
    return not _holds_values(function) and _is_stable(function)


def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in code, its inner functions included."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names_in(c))]))


_referenced_names = functools.lru_cache(maxsize=1024)(_names_in)


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code looks up among its globals, its inner functions included."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*names, *(n for c in inner for n in _global_names(c))]))


def _is_generated(function: types.FunctionType) -> bool:
    """Whether ``dataclass`` generated a function, which then reads nothing but the fields."""
    return function.__code__.co_filename == "<string>" or function.__name__ == "__reduce__"
