"""Run kernels that are written with a ``TaskWriter`` by hand: ``run_written``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.runtime.allocation import address
from tracetorch.fuse.runtime.machine_code import TaskKernel, compiled
from tracetorch.fuse.runtime.threads import run_tasks

_DTYPES = {"l": torch.int64, "n": torch.int32, "h": torch.uint16}
_TASKS_PER_THREAD = 4


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
    """Run a kernel over all its tasks; it is compiled at the first call.

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


@functools.cache
def _kernel(write: Callable[..., None], dtype: torch.dtype, form: tuple[int, ...]) -> TaskKernel:
    k = TaskWriter(write.__name__)
    write(k, "float" if dtype == torch.float32 else "double", *form)
    return compiled(k.text(), write.__name__)


def shared_out(count: int, least: int) -> tuple[int, int]:
    """Return how many rows or columns are a task, at least ``least``, and how many tasks there are.

    Several for each thread, so that all end together, and few, so that each reads what it shares
    with the others seldom. For kernels whose result does not depend on it.
    """
    per_task = max(least, -(-count // (_TASKS_PER_THREAD * torch.get_num_threads())))
    return per_task, -(-count // per_task)
