"""Compile printed sources into Numba kernels, and cache them on disk for the next process."""

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
_alive: list[object] = []  # compiled functions whose code is called by address
_kernels: dict[str, Callable[..., None]] = {}


def folder() -> Path:
    """Return the folder of sources and compiled kernels: ``TRACETORCH_CACHE``, or a default."""
    configured = os.environ.get("TRACETORCH_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracetorch"


def compiled(source: str, name: str, signature: Any) -> Callable[..., None]:
    """Compile the function ``name`` of ``source`` for one signature.

    The source goes to a file named for its content, whole or not at all, with Numba's cache beside
    it: processes that compile at once write the same bytes, and one that dies leaves nothing
    broken. Where the folder cannot be written the kernel is compiled in memory.

    Args:
        source: a module.
        name: the function.
        signature: Numba's.

    """
    return _compile_once(source, name, signature, _jit)


def compiled_at(source: str, name: str, signature: Any) -> Callable[..., None]:
    """Compile a function that takes addresses, to be called by address in fewer microseconds."""
    return _compile_once(source, name, signature, _by_address)


def _compile_once(source: str, name: str, signature: Any, make: _Make) -> Callable[..., None]:
    tag = hashlib.sha256(f"{source}{signature}".encode()).hexdigest()[:20]
    with _lock:
        if tag not in _kernels:
            _kernels[tag] = _compile(source, name, tag, signature, make)
        return _kernels[tag]


def module_of(source: str, name: str) -> ModuleType:
    """Import ``source`` from a file, for Triton reads the text of its kernels again."""
    tag = hashlib.sha256(source.encode()).hexdigest()[:20]
    try:
        return _import_file(_write_source(source, folder() / f"{name}_{tag}.py"), name, tag)
    except OSError:
        return _import_file(
            _write_source(source, Path(tempfile.mkdtemp()) / f"{name}_{tag}.py"), name, tag
        )


def _compile(source: str, name: str, tag: str, signature: Any, make: _Make) -> Callable[..., None]:
    try:
        path = _write_source(source, folder() / f"{name}_{tag}.py")
        return make(getattr(_import_file(path, name, tag), name), signature, True)
    except Exception:
        # read-only, full, or damaged in whichever way: none of it is a reason not to run, and what
        # is wrong with the source itself is raised below
        namespace: dict[str, Any] = {}
        file = f"<{name}_{tag}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), namespace)
        return make(namespace[name], signature, False)


def _write_source(source: str, path: Path) -> Path:
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


def _import_file(path: Path, name: str, tag: str) -> ModuleType:
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
    _alive.append(kernel)
    return ctypes.CFUNCTYPE(None, *kinds)(cast(int, kernel.address))


def _renew_lock() -> None:
    """Make a new lock after ``fork``: no thread is left in the child that would release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
