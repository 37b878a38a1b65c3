"""Inspect functions: whether they read more than their arguments, what they call, their code."""

from __future__ import annotations

import dis
import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import torch

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


def reads_nothing(function: Any, callers: tuple[Any, ...] = ()) -> bool:
    """Whether a function or class computes from its arguments alone, and always will.

    True for stable packages, and for a plain function without closure and defaults that names no
    globals but such functions and stable modules. Functions that call each other in a circle are
    not followed, and count as others do: ``callers`` are those through which one was reached.
    """
    if is_stable(function):
        return True
    if not isinstance(function, types.FunctionType) or holds_values(function):
        return False
    # torch.compile warns of a cache, and guards on what it follows here
    names_of = _names_in if torch.compiler.is_compiling() else referenced_names
    names = names_of(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    callers = (*callers, function)
    return all(
        is_stable_module(value)
        if isinstance(value, types.ModuleType)
        else callable(value)
        and not any(value is caller for caller in callers)
        and reads_nothing(value, callers)
        for value in values
    )


def helpers(function: Any) -> list[tuple[dict[str, Any], str, object]]:
    """Return the global callables that a function with :func:`reads_nothing` calls.

    A global name can be rebound, as a notebook does when a cell runs again; who keeps a compiled
    function compares these at each call. Of each: the globals that hold it,
    its name there, and the callable; ``None`` where the name is that of a builtin, which a global
    of the same name would hide.
    """
    if is_stable(function):
        return []
    callables: list[tuple[dict[str, Any], str, object]] = []
    for name in _global_names(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, types.ModuleType):
            callables.append((function.__globals__, name, value))
            callables += [] if value is None else helpers(value)
    return callables


function_parts: Callable[[types.FunctionType], tuple[object, ...]] = operator.attrgetter(
    "__code__", "__defaults__", "__kwdefaults__"
)
"""Return what can be replaced in a function while it stays the same object.

An editor that reloads modules, as IPython's ``%autoreload``, does so: whoever holds the function
then runs the new code.
"""


def is_stable(owner: Any) -> bool:
    """Whether a function or class is of a stable package."""
    return _package(getattr(owner, "__module__", "")) in _STABLE_PACKAGES


def is_stable_module(module: types.ModuleType) -> bool:
    """Whether a module is of a stable package."""
    return _package(module.__name__) in _STABLE_PACKAGES


def _package(module_name: object) -> str:
    return str(module_name).partition(".")[0]


@functools.lru_cache(maxsize=1024)
def is_stable_class(kind: type) -> bool:
    """Whether a class and its bases are of stable packages."""
    return all(is_stable(base) for base in kind.__mro__)


def holds_values(function: types.FunctionType) -> bool:
    """Whether a function has a closure or defaults."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__)


def is_self_contained(function: types.FunctionType) -> bool:
    """Whether a function is of a stable package, without closure or defaults."""
    return not holds_values(function) and is_stable(function)


def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in code, its inner functions included."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names_in(c))]))


referenced_names = functools.lru_cache(maxsize=1024)(_names_in)


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code looks up among its globals, its inner functions included."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*names, *(n for c in inner for n in _global_names(c))]))
