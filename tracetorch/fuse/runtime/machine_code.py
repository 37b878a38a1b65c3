"""Compile LLVM IR in this process, and keep kernels on disk for the next one.

A kernel compiles in some 30 to 60 milliseconds, and loads in a few: its object code is kept, behind
a checksum, in a file named for it and a hash of what it was made from; its time is the last use. A
damaged file, or a folder that cannot be written, costs the compilation and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tracetorch.core.files import atomic_replace
from tracetorch.fuse.codegen.llvm_functions import LIBRARY
from tracetorch.fuse.codegen.llvm_kernel import Processor

_log = logging.getLogger("tracetorch")
_lock = threading.RLock()
_kernels: dict[str, TaskKernel] = {}
_alive: list[Any] = []  # engines whose code is called by address
_CHECKSUM = 64  # bytes at the beginning of a file
# unfinished files of atomic_replace have a hexadecimal number in front
_FILE = re.compile(r"(?:\.[0-9a-f]+\.)?([a-z_]+_[0-9a-f]{20})\.")
_reported: set[str] = set()  # what this process has logged


class TaskKernel(NamedTuple):
    """A kernel over tasks, as :func:`tracetorch.fuse.runtime.threads.run_tasks` runs it."""

    run: Callable[[int | bytes], None]
    """Does the tasks of a block that no other thread does, without the GIL; a block is an address,
    or bytes that are only read."""
    address: int
    """Of its machine code, a C function of the address of a block."""


class Machine(NamedTuple):
    """Target of machine code: architecture and system, processor, features, as LLVM names them."""

    triple: str
    cpu: str
    features: str

    @property
    def processor(self) -> Processor:
        """Width and number of its vector registers."""
        features = set(self.features.split(","))
        if "+avx512f" in features:
            return Processor(512, 32)
        if "+avx2" in features:
            return Processor(256, 16)
        return Processor(128, 32 if self.triple.startswith(("aarch64", "arm64")) else 16)


@functools.cache
def unavailable_reason() -> str | None:
    """Return why nothing can be compiled on this machine, or ``None``."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed; pip install llvmlite"
    try:
        this_machine()
    except Exception as failure:  # a broken library, a processor that LLVM does not know
        return f"llvmlite cannot compile: {failure}"
    return None


@functools.cache
def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # functions of the C library, those that it has: looked up once, for this runs another program
    path = "ucrtbase" if sys.platform == "win32" else ctypes.util.find_library("m")
    with contextlib.suppress(OSError):
        library: Any = ctypes.CDLL(path)
        rounding = ("rint", "fma", "ceil", "floor", "trunc")
        for name in (*LIBRARY, *rounding, "memset", "memcpy"):
            for each in (name, f"{name}f"):
                function = getattr(library, each, None)
                if function is not None:
                    llvm.add_symbol(each, ctypes.cast(function, ctypes.c_void_p).value or 0)
    features: Any = llvm.get_host_cpu_features()
    # LLVM's default triple on Windows writes an object format that its loader does not know
    triple = llvm.get_process_triple()
    if sys.platform == "win32":
        triple += "-elf"
    return Machine(triple, llvm.get_host_cpu_name(), features.flatten())


def compiled(text: str, name: str) -> TaskKernel:
    """Return a function of one address in a module in LLVM IR, compiled at the first call."""
    key = hashlib.sha256(text.encode()).hexdigest()
    with _lock:
        if key not in _kernels:
            _kernels[key] = _load(_object_code(text, name), name)
        return _kernels[key]


def _target(machine: Machine) -> Any:
    import llvmlite.binding as llvm

    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, codemodel="jitdefault", jit=True
    )


def object_code(text: str, machine: Machine) -> bytes:
    """Compile a module without LLVM's passes: its text is as good as they would make it."""
    import llvmlite.binding as llvm

    target = _target(machine)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(target.target_data)
    found: bytes = target.emit_object(module)
    return found


def _object_code(text: str, name: str) -> bytes:
    """Return the object code of a module, from the folder or for it."""
    import llvmlite.binding as llvm

    machine = this_machine()
    version = ".".join(map(str, llvm.llvm_version_info))
    key = hashlib.sha256("\n".join((*machine, version, text)).encode()).hexdigest()
    stem = f"{name}_{key[:20]}"

    def checksum(code: bytes) -> bytes:  # for this key, and for no other
        return hashlib.sha256(key.encode() + code).hexdigest().encode()

    def make() -> bytes:
        _log.info("compiling the kernel %s.", stem)
        made = object_code(text, machine)
        return checksum(made) + made

    content, _ = kept(
        f"{stem}.o", lambda found: found[:_CHECKSUM] == checksum(found[_CHECKSUM:]), make
    )
    return content[_CHECKSUM:]


def _load(code: bytes, name: str) -> TaskKernel:
    """Put object code into memory."""
    import llvmlite.binding as llvm

    empty = llvm.parse_assembly("")
    empty.triple = this_machine().triple
    engine = llvm.create_mcjit_compiler(empty, _target(this_machine()))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address: int = engine.get_function_address(name)
    _alive.append(engine)
    return TaskKernel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address)


# A fork waits for a compilation that is under way: LLVM has locks of its own, and in the child no
# thread would be left to release them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


# The folder


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


def kept(
    name: str, is_right: Callable[[bytes], bool], make: Callable[[], bytes]
) -> tuple[bytes, Path | None]:
    """Return a file's content, made where there is none or a damaged one, and its path, if any."""
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
    # without the .pyc of an import, which could be damaged too
    module = ModuleType(f"tracetorch_kernels.{stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
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
