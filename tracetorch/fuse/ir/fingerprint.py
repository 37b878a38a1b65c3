"""``fingerprint``: everything a step's behaviour can depend on, as one hashable value.

Numbers that a callable holds, closes over or reads from its module are compiled into a kernel, so
they are part of what the kernel is known by: an annealed slope makes a new kernel, or finds the old
one again when it returns.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.graph import Unfusable

_NUMBERS = (type(None), bool, int, str, bytes, complex, enum.Enum, torch.dtype, torch.device)
_HOLDERS = (tuple, list, set, frozenset, dict, type)
_STABLE = ("builtins", "enum", "functools", "math", "numpy", "torch", "tracetorch", "typing")

_Seen: TypeAlias = (
    "dict[int, tuple[int, object]]"  # the objects too: an id is theirs while they live
)


def fingerprint(name: str, value: object) -> Hashable:
    """What ``value`` does, as far as it can be told from outside.

    Args:
        name: how the reason for a refusal calls it.
        value: a constant, a surrogate, any callable.

    Raises:
        Unfusable: it holds something whose changes cannot be seen.

    Example:
        >>> scaled = lambda slope: lambda u: slope * u
        >>> fingerprint("spike", scaled(2.0)) == fingerprint("spike", scaled(2.0))
        True
        >>> fingerprint("spike", scaled(2.0)) == fingerprint("spike", scaled(3.0))
        False

    """
    if isinstance(value, Surrogate) and _is_stable_class(type(value)):  # type: ignore[arg-type]
        # the common case in one line: this package's own, whose fields say all of it
        fields = [v.hex() if isinstance(v, float) else (type(v), v) for v in vars(value).values()]
        return type(value), tuple(fields)
    if type(value) is types.FunctionType and _is_whole(value):
        return value
    return _of(value, name, {})


@functools.lru_cache(maxsize=1024)
def _is_stable_class(kind: type) -> bool:
    """Whether a class and its bases are this package's or PyTorch's own."""
    return all(_is_stable(base) for base in kind.__mro__)


def _is_whole(function: types.FunctionType) -> bool:
    """Whether a function is this package's or PyTorch's own and holds nothing."""
    holds = function.__closure__ or function.__defaults__ or function.__kwdefaults__
    return not holds and _is_stable(function)


def _of(value: Any, name: str, seen: _Seen) -> Hashable:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, _NUMBERS):
        return type(value), value
    if id(value) in seen:
        return "seen", seen[id(value)][0]
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return value
    seen[id(value)] = len(seen), value
    if isinstance(value, (tuple, list, set, frozenset)):
        return type(value), tuple(_of(item, name, seen) for item in value)
    if isinstance(value, Mapping):
        return tuple((_of(k, name, seen), _of(v, name, seen)) for k, v in value.items())
    if isinstance(value, types.FunctionType):
        return _of_function(value, name, seen)
    if isinstance(value, types.MethodType):
        return _of(value.__func__, name, seen), _of(value.__self__, name, seen)
    if isinstance(value, functools.partial):
        return tuple(_of(v, name, seen) for v in (value.func, value.args, value.keywords))
    if isinstance(value, type):
        return _of_class(value, name, seen)
    if isinstance(value, (Tensor, nn.Module)) or not hasattr(value, "__dict__"):
        kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
        raise Unfusable(
            f"its {name!r} holds a {kind}, whose changes a compiled kernel would not see"
        )
    slots = {
        slot: getattr(value, slot, None)
        for kind in type(value).__mro__
        for slot in getattr(kind, "__slots__", ())
        if slot not in ("__dict__", "__weakref__")
    }
    held = {**vars(value), **slots}
    return _of(type(value), name, seen), tuple((k, _of(v, name, seen)) for k, v in held.items())


def _is_stable(owner: Any) -> bool:
    return str(getattr(owner, "__module__", "")).partition(".")[0] in _STABLE


def _of_function(function: types.FunctionType, name: str, seen: _Seen) -> Hashable:
    if _is_whole(function):
        return function
    cells = [
        _of(cell.cell_contents, name, seen)
        for cell in function.__closure__ or ()
        if cell.cell_contents is not function
    ]
    defaults = _of((function.__defaults__, function.__kwdefaults__ or {}), name, seen)
    if _is_stable(function):
        return function, tuple(cells), defaults
    read = []
    names = _names(function.__code__)
    for global_name in names:
        if global_name not in function.__globals__:
            continue
        held = function.__globals__[global_name]
        if isinstance(held, types.ModuleType):
            if held.__name__.split(".")[0] not in _STABLE:  # settings.SLOPE
                read += _of_settings(held, names, name, seen)
        else:
            read.append(_of(held, name, seen))
    return function.__code__, tuple(cells), defaults, tuple(read)


def _of_settings(
    module: types.ModuleType, names: tuple[str, ...], name: str, seen: _Seen
) -> list[Hashable]:
    """What a function that names ``module`` may read of it, and of modules inside it."""
    told: list[Hashable] = []
    for inner in names:
        held = vars(module).get(inner)
        if not isinstance(held, types.ModuleType):
            told.append(_of(held, name, seen))
        elif held is not module and held.__name__.split(".")[0] not in _STABLE:
            told += _of_settings(held, names, name, seen)
    return told


def reads_nothing(function: Any) -> bool:
    """Whether what a function or a class computes depends on its arguments alone, for good.

    So it is with this package's own and PyTorch's, and with a plain function that has no closure,
    no defaults, and reads no globals but such functions and modules.
    """
    if _is_stable(function):
        return True
    if (
        not isinstance(function, types.FunctionType)
        or function.__closure__
        or function.__defaults__
        or function.__kwdefaults__
    ):
        return False
    read = [function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__]
    return all(
        held.__name__.split(".")[0] in _STABLE
        if isinstance(held, types.ModuleType)
        else callable(held) and held is not function and reads_nothing(held)
        for held in read
    )


def helpers(function: Any) -> list[tuple[dict[str, Any], str, object]]:
    """What a function that :func:`reads_nothing` calls by a global name: where, name, callable.

    Names can be bound anew, as a notebook does when a cell runs again.
    """
    if _is_stable(function):
        return []
    found: list[tuple[dict[str, Any], str, object]] = []
    for name in _names(function.__code__):
        held = function.__globals__.get(name)
        if held is not None and not isinstance(held, types.ModuleType):
            found += [(function.__globals__, name, held), *helpers(held)]
    return found


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names(c))]))


def _of_class(kind: type, name: str, seen: _Seen) -> Hashable:
    told: list[Hashable] = [kind]
    for base in kind.__mro__:
        if _is_stable(base):
            continue
        for key, held in vars(base).items():
            if isinstance(held, (staticmethod, classmethod)):
                held = held.__func__
            elif isinstance(held, property):
                held = held.fget
            if isinstance(held, types.FunctionType) and not _is_generated(held):
                told.append((key, _of_function(held, name, seen)))
            elif isinstance(held, (float, *_NUMBERS, *_HOLDERS)) and not key.startswith("__"):
                told.append((key, _of(held, name, seen)))
    return tuple(told)


def _is_generated(function: types.FunctionType) -> bool:
    """Whether ``dataclass`` wrote it: it reads nothing but the fields."""
    return function.__code__.co_filename == "<string>" or function.__name__ == "__reduce__"
