"""``compiled``: source into a Numba kernel, kept on disk for the next process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import linecache
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeAlias, cast

_Make: TypeAlias = "Callable[[FunctionType, Any, bool], Callable[..., None]]"

_lock = threading.RLock()
_held: list[object] = []
_kernels: dict[str, Callable[..., None]] = {}


def folder() -> Path:
    """Where sources and compiled kernels are kept: ``TRACETORCH_CACHE``, or the user's cache."""
    told = os.environ.get("TRACETORCH_CACHE")
    if told:
        return Path(told)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracetorch"


def compiled(source: str, name: str, signature: Any) -> Callable[..., None]:
    """The function ``name`` of ``source``, compiled for one signature.

    The source goes to a file named for its content, whole or not at all, with Numba's cache beside
    it: processes that compile at once write the same bytes, and one that dies leaves nothing
    broken. Where the folder cannot be written the kernel is compiled in memory.

    Args:
        source: a module.
        name: the function.
        signature: Numba's.

    """
    return _once(source, name, signature, _jit)


def compiled_at(source: str, name: str, signature: Any) -> Callable[..., None]:
    """The same for a function that takes addresses, called by address: fewer microseconds."""
    return _once(source, name, signature, _by_address)


def _once(source: str, name: str, signature: Any, make: _Make) -> Callable[..., None]:
    tag = hashlib.sha256(f"{source}{signature}".encode()).hexdigest()[:20]
    with _lock:
        if tag not in _kernels:
            _kernels[tag] = _from_disk(source, name, tag, signature, make)
        return _kernels[tag]


def module_of(source: str, name: str) -> ModuleType:
    """The module that ``source`` is, from a file: Triton reads the text of its kernels again."""
    tag = hashlib.sha256(source.encode()).hexdigest()[:20]
    try:
        return _module(_kept(source, folder() / f"{name}_{tag}.py"), name, tag)
    except OSError:
        return _module(_kept(source, Path(tempfile.mkdtemp()) / f"{name}_{tag}.py"), name, tag)


def _from_disk(
    source: str, name: str, tag: str, signature: Any, make: _Make
) -> Callable[..., None]:
    try:
        path = _kept(source, folder() / f"{name}_{tag}.py")
        return make(getattr(_module(path, name, tag), name), signature, True)
    except Exception:
        # read-only, full, or damaged in whichever way: none of it is a reason not to run, and what
        # is wrong with the source itself is raised below
        namespace: dict[str, Any] = {}
        file = f"<{name}_{tag}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), namespace)
        return make(namespace[name], signature, False)


def _kept(source: str, path: Path) -> Path:
    with contextlib.suppress(OSError):
        if path.read_text() == source:
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(source)
        os.utime(temporary, (0, 0))  # Numba's cache compares times; two writers must agree on it
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _module(path: Path, name: str, tag: str) -> ModuleType:
    module_name = f"tracetorch_kernels.{name}_{tag}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Numba pickles functions by their module
    spec.loader.exec_module(module)
    return module


def _jit(function: FunctionType, signature: Any, cache: bool) -> Callable[..., None]:
    import numba

    kernel: Callable[..., None] = numba.njit(
        signature, nogil=True, error_model="numpy", boundscheck=False, cache=cache
    )(function)
    return kernel


def _by_address(function: FunctionType, signature: Any, cache: bool) -> Callable[..., None]:
    import numba
    from numba import types

    kernel = numba.cfunc(signature, error_model="numpy", cache=cache)(function)
    kinds = [
        ctypes.c_void_p if isinstance(kind, types.CPointer) else ctypes.c_int64
        for kind in signature.args
    ]
    _held.append(kernel)  # its code lives as long as it does
    return ctypes.CFUNCTYPE(None, *kinds)(cast(int, kernel.address))


def _renew_lock() -> None:
    """After ``fork`` nobody is left in the child who would release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
