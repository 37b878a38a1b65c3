"""Compile the kernels of products with events, at the first call of each, and run them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from tracetorch.fuse.runtime.kernel_cache import TaskKernel, compiled_tasks
from tracetorch.fuse.runtime.memory import address
from tracetorch.fuse.runtime.threads import run_tasks

# After the range of tasks one letter for each argument: i an integer, r reals, l integers, n short
# and h shorter ones.
_ARGUMENTS = {
    "scan": "iiirhl",
    "fill": "iiirhlnrl",
    "sort": "iiilnrilnr",
    "forward": "iilnrirrir",
    "backward": "iiiillnririr",
}
_DTYPES = {"l": torch.int64, "n": torch.int32, "h": torch.uint16}
_TASKS_PER_THREAD = 4


def run(name: str, dtype: torch.dtype, tasks: int, *arguments: int | Tensor, work: int) -> None:
    """Run a kernel of ``tracetorch/events/kernels.py`` over all its tasks.

    Args:
        name: its name.
        dtype: float32 or float64.
        tasks: how many there are.
        arguments: those after the range of tasks; tensors are contiguous.
        work: operations on one value in all tasks.

    Raises:
        TypeError: a tensor is of another dtype than the kernel reads, or not on the CPU.
    """
    values = [
        argument if isinstance(argument, int) else address(argument, _DTYPES.get(letter, dtype))
        for letter, argument in zip(_ARGUMENTS[name], arguments, strict=True)
    ]
    run_tasks(_kernel(name, dtype), values, tasks, work=work)


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> TaskKernel:
    from numba import types

    real = types.float32 if dtype == torch.float32 else types.float64
    kinds = {
        "i": types.int64,
        "r": real[::1],
        "l": types.int64[::1],
        "n": types.int32[::1],
        "h": types.uint16[::1],
    }
    signature = types.void(*(kinds[letter] for letter in "ii" + _ARGUMENTS[name]))
    source = (Path(__file__).parent / "kernels.py").read_text(encoding="utf-8")
    return compiled_tasks(source, name, signature)


def shared_out(count: int, least: int) -> tuple[int, int]:
    """Return how many rows or columns are a task, at least ``least``, and how many tasks there are.

    Several for each thread, so that all end together, and few, so that each reads what it shares
    with the others seldom. For kernels whose result does not depend on it.
    """
    per_task = max(least, -(-count // (_TASKS_PER_THREAD * torch.get_num_threads())))
    return per_task, -(-count // per_task)
