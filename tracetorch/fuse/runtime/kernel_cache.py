"""Cache compiled kernels on disk for the next process; compile those that are written for Numba.

The names of all files of a kernel start with its name and the hash of its source. One of Numba has
several: the source, the index and the machine code that Numba writes, and their checksum, whose
time is that of the last use.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import linecache
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, cast

from tracetorch.core.files import atomic_replace
from tracetorch.fuse.codegen.task_function import task_function

# unfinished files of atomic_replace have a hexadecimal number in front
_FILE = re.compile(r"(?:\.[0-9a-f]+\.)?([a-z_]+_[0-9a-f]{20})\.")

_log = logging.getLogger("tracetorch")
_lock = threading.RLock()
_alive: list[object] = []  # compiled functions whose code is called by address
_kernels: dict[str, Callable[..., None]] = {}
_reported: set[str] = set()  # what this process has reported, each once


# The folder


def folder() -> Path:
    """Return the folder of sources and compiled kernels: ``TRACETORCH_CACHE``, or a default.

    Raises:
        OSError: it is not set, and there is no home folder either.

    """
    configured = os.environ.get("TRACETORCH_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base) / "tracetorch" if base else Path.home() / ".cache" / "tracetorch"
    except RuntimeError as error:
        raise OSError(f"{error} Set TRACETORCH_CACHE to a folder for kernels.") from error


def limit() -> float:
    """Return the most bytes in the folder: ``TRACETORCH_CACHE_LIMIT`` in megabytes, or 512 MB.

    Raises:
        ValueError: it is set to anything but a number of at least 0; ``inf`` is one.

    """
    configured = os.environ.get("TRACETORCH_CACHE_LIMIT") or "512"
    try:
        megabytes = float(configured)
    except ValueError:
        megabytes = -1.0
    if not megabytes >= 0:
        raise ValueError(
            "TRACETORCH_CACHE_LIMIT must be a number of megabytes, 0 or more, got "
            f"{configured!r}. Leave it out for 512."
        )
    return megabytes * 1e6


class CachedKernel(NamedTuple):
    """A kernel in the folder: its files, their size in bytes, and when it was last used."""

    files: list[Path]
    size: int
    used: float


def cached_kernels() -> list[CachedKernel]:
    """List the kernels in the folder, the one that was not used for the longest time first."""
    files: dict[str, dict[Path, os.stat_result]] = {}
    for place in _places():
        with contextlib.suppress(OSError):
            for path in place.iterdir():
                match = _FILE.match(path.name)
                if match and path.is_file():
                    with contextlib.suppress(OSError):  # another process has removed it
                        files.setdefault(match[1], {})[path] = path.stat()
    kernels = [
        CachedKernel(
            list(s), sum(f.st_size for f in s.values()), max(f.st_mtime for f in s.values())
        )
        for s in files.values()
    ]
    return sorted(kernels, key=lambda kernel: kernel.used)


def _places() -> list[Path]:
    """Return where files of the cache are: Numba has its own under ``NUMBA_CACHE_DIR``, if set."""
    places = [folder(), folder() / "__pycache__"]
    elsewhere = os.environ.get("NUMBA_CACHE_DIR")
    if elsewhere:
        from numba.core import caching

        # with an underscore before Numba 0.61
        public = getattr(caching, "UserProvidedCacheLocator", None)
        locator = public or caching._UserProvidedCacheLocator  # type: ignore[attr-defined]
        name: str = locator.get_suitable_cache_subpath(str(folder() / "_"))
        places.append(Path(elsewhere) / name)
    return places


def clear() -> None:
    """Remove all kernels from the folder; files that are not of this cache stay."""
    for kernel in cached_kernels():
        _remove(kernel.files)


def prune(most: float) -> None:
    """Remove the kernels that were not used for the longest until ``most`` bytes are left.

    Processes that run keep what they have loaded.
    """
    kernels = cached_kernels()
    size = sum(kernel.size for kernel in kernels)
    for kernel in kernels:
        if size <= most:
            break
        _remove(kernel.files)
        size -= kernel.size


def _remove(files: list[Path]) -> None:
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()


# Compiling


@functools.cache
def numba_reason() -> str | None:
    """Return why Numba cannot compile on this machine, or ``None``."""
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed; pip install numba"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        import numba  # noqa: F401
    except Exception as failure:  # a NumPy it does not know, a broken library
        return f"Numba cannot be imported: {failure}"
    return None


def compiled_at(source: str, name: str, signature: Any) -> Callable[..., None]:
    """Compile the function ``name`` of ``source`` for one signature, to be called by address.

    That takes fewer microseconds than a call of Numba's, and no thread needs the GIL for it. The
    source goes to a file named for its content, whole or not at all, with Numba's cache beside
    it: processes that compile at once write the same bytes, and one that dies leaves nothing
    broken. Damaged files are replaced. Where the folder cannot be written the kernel is compiled
    in memory.

    Args:
        source: a module.
        name: the function, of integers and addresses.
        signature: Numba's.

    """
    tag = hashlib.sha256(f"{source}{signature}".encode()).hexdigest()[:20]
    with _lock:
        if tag not in _kernels:
            _kernels[tag] = _compile(source, name, f"{name}_{tag}", signature)
        return _kernels[tag]


class TaskKernel(NamedTuple):
    """A kernel over tasks, as :func:`tracetorch.fuse.runtime.threads.run_tasks` runs it.

    Args:
        run: does the tasks of a block that no other thread does, without the GIL.
        address: of its machine code, a C function of the address of a block.
    """

    run: Callable[[int], None]
    address: int


def compiled_tasks(source: str, name: str, signature: Any, scratch: int = 0) -> TaskKernel:
    """Compile a function over a range of tasks, whose tasks several threads share out.

    Args:
        source: a module.
        name: the function, of ``first`` and ``last`` and then of integers and flat arrays.
        signature: Numba's.
        scratch: how many of the last arrays are scratch, of which each thread gets its own.

    """
    from numba import types

    printed = task_function(source, name, signature.args, scratch)
    block = types.void(types.CPointer(types.int64))  # type: ignore[no-untyped-call]
    run: Any = compiled_at(printed, name, block)
    return TaskKernel(run, ctypes.cast(run, ctypes.c_void_p).value or 0)


def module_of(source: str, name: str) -> ModuleType:
    """Import ``source`` from a file, for Triton reads the text of its kernels again."""
    stem = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:20]}"
    most = limit()
    try:
        path = _write_source(source, folder() / f"{stem}.py")
        mark_used(path)
        prune(most)
    except OSError as error:
        report_unusable(error)
        path = _write_source(source, Path(tempfile.mkdtemp()) / f"{stem}.py")
    return _module(source, str(path), stem)


def _compile(source: str, name: str, stem: str, signature: Any) -> Callable[..., None]:
    most = limit()
    failure: Exception | None = None
    for _ in range(2):  # the second time without the files that were damaged
        try:
            return _compile_on_disk(source, name, stem, signature, most)
        except Exception as error:  # damaged in whichever way, read-only, or full
            failure = error
            with contextlib.suppress(OSError):
                _remove([path for place in _places() for path in place.glob(f"{stem}.*")])
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                break
    # none of it is a reason not to run, and what is wrong with the source itself is raised here
    file = f"<{stem}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    _announce(stem)
    kernel = _by_address(getattr(_module(source, file, stem), name), signature, False)
    report_unusable(failure)
    return kernel


def _compile_on_disk(
    source: str, name: str, stem: str, signature: Any, most: float
) -> Callable[..., None]:
    """Load a kernel from the folder; or compile it, and remove others where there are too many."""
    from numba.core.caching import FunctionCache

    path = _write_source(source, folder() / f"{stem}.py")
    # where this fails Numba would write into a folder that nobody bounds
    (path.parent / "__pycache__").mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent / "__pycache__").close()
    function = getattr(_module(source, str(path), stem), name)
    place = Path(FunctionCache(function).cache_path)  # type: ignore[no-untyped-call]
    checksum = path.with_suffix(".sha256")
    before = _checksum(place, stem)
    # Numba would run whatever machine code is there
    if before and checksum.exists() and checksum.read_bytes() != before:
        _log.info("the cached kernel %s is damaged, it is compiled again.", stem)
        _remove(_machine_code(place, stem))
        before = b""
    if not before:
        _announce(stem)
    kernel = _by_address(function, signature, True)
    after = _checksum(place, stem)
    if after != before or not checksum.exists():
        with atomic_replace(checksum) as unfinished:
            unfinished.write_bytes(after)
        prune(most)
    else:
        mark_used(checksum)
    return kernel


def mark_used(path: Path) -> None:
    """Set the time of a file to now: the one that was not used for the longest is removed first."""
    with contextlib.suppress(OSError):  # another user's
        os.utime(path)


def _machine_code(place: Path, stem: str) -> list[Path]:
    """List what Numba wrote for a kernel: an index and the machine code, for every Python."""
    return sorted([*place.glob(f"{stem}.*.nbi"), *place.glob(f"{stem}.*.nbc")])


def _checksum(place: Path, stem: str) -> bytes:
    """Return the checksum of what Numba wrote for a kernel; empty where there is nothing."""
    files = _machine_code(place, stem)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    return digest.hexdigest().encode() if files else b""


def _write_source(source: str, path: Path) -> Path:
    with contextlib.suppress(OSError):
        if path.read_bytes() == source.encode():
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as unfinished:
        unfinished.write_bytes(source.encode())
        os.utime(unfinished, (0, 0))  # Numba's cache compares times; two writers must agree on it
    return path


def _module(source: str, file: str, stem: str) -> ModuleType:
    """Run a source as a module, without the ``.pyc`` of an import, which could be damaged too."""
    module = ModuleType(f"tracetorch_kernels.{stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # Numba pickles functions by their module
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module


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


# Reporting


def _announce(stem: str) -> None:
    """Say that a kernel is compiled: to the log, or else once on a terminal."""
    _log.info("compiling the kernel %s, which takes some seconds.", stem)
    logged = _log.hasHandlers() and _log.isEnabledFor(logging.INFO)
    if "compiling" not in _reported and not logged and sys.stderr and sys.stderr.isatty():
        _reported.add("compiling")
        sys.stderr.write("traceTorch compiles kernels: the first call takes some seconds longer.\n")


def report_unusable(reason: Exception | None) -> None:
    """Log once that the folder cannot be used, and why."""
    if "unusable" not in _reported:
        _reported.add("unusable")
        _log.warning(
            "compiled kernels are not kept, every process compiles its own: %s: %s. Set "
            "TRACETORCH_CACHE to a folder that can be written.",
            type(reason).__name__,
            reason,
        )


def _renew_lock() -> None:
    """Make a new lock after ``fork``: no thread is left in the child that would release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
