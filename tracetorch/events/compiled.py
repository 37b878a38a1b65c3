"""Compile the kernels of products with events, at the first call of each, and run them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.events import conv_kernels, kernels
from tracetorch.events.kernels import LANES
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.runtime.allocation import address
from tracetorch.fuse.runtime.machine_code import TaskKernel, compiled
from tracetorch.fuse.runtime.threads import run_tasks

# One letter for each argument: i an integer, r reals, l integers, n short and h shorter ones.
_ARGUMENTS = {
    "scan": "iiirhll",
    "fill": "iiirhlnri",
    "sort": "iiilnrilnr",
    "forward": "iiiiilnrirrir",
    "backward": "iiiiillnririr",
    "conv_forward": "i" * 16 + "lnrrrr",
    "conv_backward": "i" * 20 + "lnrrr",
}
_DTYPES = {"l": torch.int64, "n": torch.int32, "h": torch.uint16}
_TASKS_PER_THREAD = 4


def run(
    name: str,
    dtype: torch.dtype,
    tasks: int,
    *arguments: int | Tensor,
    work: int,
    scratch: Sequence[int] = (),
) -> None:
    """Run a kernel of ``kernels.py`` or ``conv_kernels.py`` over all its tasks.

    Tensors are contiguous; ``work`` counts operations on one value in all tasks, and ``scratch``
    the bytes of each array of scratch.
    """
    values = [
        argument if isinstance(argument, int) else address(argument, _DTYPES.get(letter, dtype))
        for letter, argument in zip(_ARGUMENTS[name], arguments, strict=True)
    ]
    # one piece of scratch, in which each array begins with a cache line
    sizes = [-(-size // 64) * 64 for size in scratch]
    values += [sum(sizes[:place]) for place in range(len(sizes))]
    whole = (sum(sizes),) if sizes else ()
    run_tasks(_kernel(name, dtype), values, tasks, work=work, scratch=whole)


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> TaskKernel:
    module = conv_kernels if name.startswith("conv_") else kernels
    k = TaskWriter(name)
    getattr(module, name)(k, "float" if dtype == torch.float32 else "double")
    return compiled(k.text(), name)


def shared_out(count: int, least: int) -> tuple[int, int]:
    """Return how many rows or columns are a task, at least ``least``, and how many tasks there are.

    Several for each thread, so that all end together, and few, so that each reads what it shares
    with the others seldom. For kernels whose result does not depend on it.
    """
    per_task = max(least, -(-count // (_TASKS_PER_THREAD * torch.get_num_threads())))
    return per_task, -(-count // per_task)


def full_vectors(matrix: Tensor) -> Tensor:
    """Return a contiguous tensor whose rows are full vectors, a copy where they are not."""
    columns = matrix.shape[-1]
    if columns % LANES == 0:
        return matrix.contiguous()
    wide = matrix.new_zeros(*matrix.shape[:-1], -(-columns // LANES) * LANES)
    wide[..., :columns] = matrix
    return wide


def first_sums(table: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the sums of rows of a table start from: the bias, or zeros."""
    start = table.new_zeros(table.shape[-1])
    if bias is not None:
        start[: len(bias)] = bias.detach()
    return start
