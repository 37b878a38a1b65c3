"""Find out whether a user's own code may write to tensors past their versions, by ``.data`` say."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

# Code of these packages writes to no tensor in secret, unless it is called by such a name.
_KNOWN = ("torch", "tracetorch", "numpy", "builtins")
# By these, code gets at the memory of a tensor without PyTorch noticing what it writes there.
_PAST_VERSIONS = frozenset(
    {
        *("data", "numpy", "from_numpy", "asarray", "array", "frombuffer", "as_tensor"),
        *("__array__", "__dlpack__", "from_dlpack", "to_dlpack", "memoryview", "data_ptr"),
        *("untyped_storage", "storage", "set_", "swap_tensors"),
    }
)
_AROUND = (functools.partial, types.MethodType, staticmethod, classmethod)
_MOST_FUNCTIONS = 2000


def is_known(module: nn.Module) -> bool:
    """Whether the code that a module runs is PyTorch's or this package's."""
    name = type(module).__module__
    return name.startswith(("torch.nn.", "tracetorch.")) and "forward" not in vars(module)


def may_write(parts: Iterable[object]) -> bool:
    """Whether the code of modules and objects names a way to write past versions.

    The methods of their classes are read, the functions that they hold, and all functions, classes
    and modules that those name. What they get at in another way cannot be followed.

    Args:
        parts: modules and plain objects.
    """
    pending: list[object] = []
    for part in parts:
        pending.append(type(part))
        pending += [each for each in dict(getattr(part, "__dict__", {})).values() if callable(each)]
    seen: set[int] = set()
    while pending:
        each: Any = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if len(seen) > _MOST_FUNCTIONS:
            return True
        for function in _functions(each):
            names = set(_names(function.__code__))
            if names & _PAST_VERSIONS:
                return True
            pending += _named(function, names)
    return False


def _functions(each: Any) -> Iterator[types.FunctionType]:
    """Iterate over the functions of a callable or a class, but for those that are known."""
    while issubclass(type(each), _AROUND):
        each = each.func if issubclass(type(each), functools.partial) else each.__func__
    if not issubclass(type(each), (types.FunctionType, type)):
        each = type(each)
    if str(each.__module__).partition(".")[0] in _KNOWN:
        return
    if type(each) is types.FunctionType:
        yield each
        return
    for base in each.__mro__:
        if base.__module__.partition(".")[0] in _KNOWN:
            continue
        for name, value in vars(base).items():
            if name in ("__init__", "reset_parameters"):  # no part of a pass
                continue
            for found in (value.fget, value.fset) if type(value) is property else (value,):
                function: Any = getattr(found, "__func__", found)  # of a static method
                if type(function) is types.FunctionType:
                    yield function


def _names(code: types.CodeType) -> Iterator[str]:
    """Iterate over the names that code uses, that of inner functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):  # of getattr
            yield constant


def _named(function: types.FunctionType, names: set[str]) -> Iterator[object]:
    """Iterate over the functions and classes that a function names, in itself and its module."""
    held: list[Any] = [function.__globals__[name] for name in names & function.__globals__.keys()]
    held += [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    for each in held:
        if type(each) is types.ModuleType:
            if each.__name__.partition(".")[0] not in _KNOWN:
                inner: Iterable[Any] = (vars(each).get(name) for name in names)
                yield from (value for value in inner if _is_code(value))
        elif _is_code(each):
            yield each


def _is_code(value: object) -> bool:
    return issubclass(type(value), (types.FunctionType, types.MethodType, type, functools.partial))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (it raises where nothing is there)
    except ValueError:
        return False
    return True
