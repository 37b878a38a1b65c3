"""Keep kernels on disk for the next process: find the folder, bound it, clear it.

The name of a file starts with that of its kernel and a hash of what it was made from; its time is
that of the last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tracetorch.core.files import atomic_replace

# unfinished files of atomic_replace have a hexadecimal number in front
_FILE = re.compile(r"(?:\.[0-9a-f]+\.)?([a-z_]+_[0-9a-f]{20})\.")

_log = logging.getLogger("tracetorch")
_reported: set[str] = set()  # what this process has logged


def folder() -> Path:
    """Return the folder of sources and compiled kernels: ``TRACETORCH_CACHE``, or a default.

    Raises:
        OSError: it is not set, and there is no home folder either.
    """
    configured = os.environ.get("TRACETORCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(configured or f"{base}/tracetorch").expanduser()
    except RuntimeError as error:
        raise OSError(f"{error} Set TRACETORCH_CACHE to a folder for kernels.") from error


def limit() -> float:
    """Return the most bytes in the folder: ``TRACETORCH_CACHE_LIMIT`` in megabytes, or 512 MB."""
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
    """A file in the folder, its size in bytes, and when it was last used."""

    path: Path
    size: int
    used: float


def cached_kernels() -> list[CachedKernel]:
    """List the kernels in the folder, the one that was not used for the longest time first."""
    kernels: list[CachedKernel] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in folder().iterdir():
            with contextlib.suppress(OSError):  # another process has removed it
                if _FILE.match(path.name) and path.is_file():
                    found = path.stat()
                    kernels.append(CachedKernel(path, found.st_size, found.st_mtime))
    return sorted(kernels, key=lambda kernel: kernel.used)


def clear() -> None:
    """Remove all kernels from the folder; files that are not of this cache stay."""
    _prune(-1)


def _prune(most: float) -> None:
    """Remove the kernels unused for longest until ``most`` bytes are left; loaded ones go on."""
    kernels = cached_kernels()
    size = sum(kernel.size for kernel in kernels)
    for kernel in kernels:
        if size <= most:
            break
        with contextlib.suppress(OSError):
            kernel.path.unlink()
        size -= kernel.size


# Files


def kept(
    name: str, is_right: Callable[[bytes], bool], make: Callable[[], bytes]
) -> tuple[bytes, Path | None]:
    """Return the content of a file in the folder, made where there is none or a damaged one.

    And its path, ``None`` where the folder cannot be used.
    """
    most, path = limit(), None
    try:
        path = folder() / name
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            if is_right(content):
                with contextlib.suppress(OSError):  # another user's
                    os.utime(path)  # the one that was not used for the longest is removed first
                return content, path
    except OSError as error:
        _report_unusable(error)
        return make(), None
    content = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as unfinished:
            unfinished.write_bytes(content)
        _prune(most)
    except OSError as error:
        _report_unusable(error)
        return content, None
    return content, path


def module_of(source: str, name: str) -> ModuleType:
    """Import ``source`` from a file, for Triton reads the text of its kernels again."""
    content = source.encode()
    stem = f"{name}_{hashlib.sha256(content).hexdigest()[:20]}"
    _, path = kept(f"{stem}.py", content.__eq__, lambda: content)
    if path is None:
        path = Path(tempfile.mkdtemp()) / f"{stem}.py"
        path.write_bytes(content)
    return _module(source, str(path), stem)


def _module(source: str, file: str, stem: str) -> ModuleType:
    """Run a source as a module, without the ``.pyc`` of an import, which could be damaged too."""
    module = ModuleType(f"tracetorch_kernels.{stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module


def _report_unusable(reason: Exception) -> None:
    """Log once that the folder cannot be used, and why."""
    if not _reported:
        _reported.add("unusable")
        _log.warning(
            "compiled kernels are not kept, every process compiles its own: %s: %s. Set "
            "TRACETORCH_CACHE to a folder that can be written.",
            type(reason).__name__,
            reason,
        )
