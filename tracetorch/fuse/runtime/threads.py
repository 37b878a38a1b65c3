"""Run the tasks of a kernel on PyTorch's own threads, or else on as many new ones.

PyTorch's threads wait by spinning, and starve others for milliseconds after every product. So
kernels run in a parallel region of the OpenMP runtime that PyTorch has loaded; where it is not the
one known here, or after ``fork``, which leaves its threads behind, on new ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.fuse.codegen.llvm_tasks import LINE, TaskWriter
from tracetorch.fuse.runtime.allocation import address
from tracetorch.fuse.runtime.machine_code import TaskKernel, compiled

# Operations on one value. With fewer, other threads gain some ten microseconds at most; and where
# another process has one of the cores, a team waits for it for milliseconds, as PyTorch's own do.
_LEAST_WORK = 1_000_000
_LEAST_WORK_OF_OWN = 16_000_000
_TASKS_PER_THREAD = 4
_DTYPES = {"l": torch.int64, "n": torch.int32, "h": torch.uint16}

_forked = False


class _Scratch(threading.local):
    """Memory of each calling thread; a kernel writes it before it reads it."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def run_tasks(
    kernel: TaskKernel, arguments: Iterable[int], tasks: int, *, work: int, scratch: int = 0
) -> None:
    """Run a kernel over all its tasks, on as many threads as PyTorch uses.

    Tasks must write to different places: any thread may run any task, though it is the same one
    from call to call as long as none falls behind. Calls may come from several threads at once, and
    from within another parallel region.

    Args:
        kernel: what :func:`tracetorch.fuse.runtime.machine_code.compiled` compiled.
        arguments: its arguments between the header of a block and the scratch: integers, and
            the addresses of arrays. The caller keeps their memory alive and sees to their types.
        tasks: how many there are, each worth at least a microsecond.
        work: operations on one value in all tasks; few are not worth another thread.
        scratch: bytes of the scratch of a thread, the last argument; not cleared.
    """
    gomp = None if _forked else _gomp()
    least = _LEAST_WORK if gomp else _LEAST_WORK_OF_OWN
    # no fewer where there are fewer tasks: OpenMP ends the threads that a team leaves out
    threads = 1 if work < least or tasks < 2 else torch.get_num_threads()
    places: tuple[int, ...] = ()
    if scratch:
        stride = -(-scratch // 64) * 64
        if _scratch.memory.numel() < stride * threads:
            _scratch.memory = torch.empty(stride * threads, dtype=torch.uint8)
        places = _scratch.memory.data_ptr(), stride
    # in the order of tracetorch.fuse.codegen.llvm_tasks
    number = gomp.thread_number if gomp and threads > 1 else 0
    block = array("q", (tasks, threads, number, 0, *arguments, *places))
    block.frombytes(bytes(8 * (-len(block) % LINE + LINE * threads)))
    address, _ = block.buffer_info()
    if threads == 1:
        kernel.run(address)
    elif gomp:
        gomp.parallel(kernel.address, address, threads, 0)
    else:
        _on_threads(lambda: kernel.run(address), threads)


# Kernels written with a TaskWriter by hand


def run_written(
    write: Callable[..., None],
    letters: str,
    dtype: torch.dtype,
    tasks: int,
    *arguments: int | Tensor,
    work: int,
    scratch: Sequence[int] = (),
    form: tuple[int, ...] = (),
) -> None:
    """Run a kernel that is written by hand over all its tasks; it is compiled at the first call.

    Args:
        write: a function of a module, whose name is the kernel's: it is called with the writer,
            ``"float"`` or ``"double"``, and ``form``.
        letters: one for each argument: i an integer, r reals, l integers, n short and h shorter
            ones.
        dtype: of the reals.
        tasks: how many there are.
        *arguments: integers, and contiguous tensors.
        work: operations on one value in all tasks.
        scratch: bytes of each array of scratch.
        form: which of the kernels that the function writes.
    """
    values = [
        argument if isinstance(argument, int) else address(argument, _DTYPES.get(letter, dtype))
        for letter, argument in zip(letters, arguments, strict=True)
    ]
    # one piece of scratch, in which each array begins with a cache line
    sizes = [-(-size // 64) * 64 for size in scratch]
    values += [sum(sizes[:place]) for place in range(len(sizes))]
    whole = max(sum(sizes), len(sizes))  # an argument of the kernel, where there is any
    run_tasks(_kernel(write, dtype, form), values, tasks, work=work, scratch=whole)


@cache
def _kernel(write: Callable[..., None], dtype: torch.dtype, form: tuple[int, ...]) -> TaskKernel:
    k = TaskWriter(write.__name__)
    write(k, "float" if dtype == torch.float32 else "double", *form)
    return compiled(k.text(), write.__name__)


def shared_out(count: int, least: int) -> tuple[int, int]:
    """Return how many rows or columns are a task, at least ``least``, and how many tasks."""
    per_task = max(least, -(-count // (_TASKS_PER_THREAD * torch.get_num_threads())))
    return per_task, -(-count // per_task)


# PyTorch's threads


class _Gomp(NamedTuple):
    """Functions of GNU's OpenMP runtime."""

    parallel: Callable[[int, int, int, int], None]
    """Runs a C function of one pointer in a team of threads."""
    thread_number: int
    """The address of a function that returns the number of the calling thread."""


@cache
def _gomp() -> _Gomp | None:
    """Return the loaded GNU OpenMP of PyTorch, or ``None``: another copy has threads of its own."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # whose dependencies contain the OpenMP runtime
        loaded = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        library = ctypes.CDLL(str(loaded), os.RTLD_NOLOAD)
        parallel, number = _address(library.GOMP_parallel), _address(library.omp_get_thread_num)
        if hasattr(library, "__kmpc_fork_call"):  # LLVM's and Intel's, which have these too
            return None
    except (OSError, AttributeError):
        return None
    # a runtime that was loaded before, for the whole process, stands in for the one of PyTorch
    with contextlib.suppress(AttributeError):
        if _address(ctypes.CDLL(None).GOMP_parallel) != parallel:
            return None
    kinds = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return _Gomp(ctypes.CFUNCTYPE(None, *kinds)(parallel), number)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


# Threads of our own


def _on_threads(work: Callable[[], None], count: int) -> None:
    """Call ``work`` in this thread and in others; what remains to be done is for it to find."""
    helpers: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):  # the main thread has ended: no more are started
        for _ in range(count - 1):
            helper = threading.Thread(target=work)
            helper.start()
            helpers.append(helper)
    interrupt: KeyboardInterrupt | None = None
    try:
        work()
    finally:
        # Waited for also where Ctrl-C interrupts: they write to memory that the caller then frees.
        while helpers:
            try:
                helpers[-1].join()
                helpers.pop()
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _note_fork() -> None:
    """Note that the threads of the OpenMP runtime have stayed behind."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
