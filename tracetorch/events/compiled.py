"""Compile the kernels of products with events, at the first call of each, and run them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.events import conv_kernels, kernels
from tracetorch.events.kernels import LANES
from tracetorch.fuse.runtime.written_kernels import run_written, shared_out

__all__ = ["first_sums", "full_vectors", "run", "shared_out"]

# The letters of the arguments.
_ARGUMENTS = {
    "scan": "iiirhll", "fill": "iiirhlnri", "sort": "iiilnrilnr", "forward": "iiiiilnrirrir",
    "backward": "iiiiillnririr", "conv_forward": "i" * 16 + "lnrrrr",
    "conv_backward": "i" * 20 + "lnrrr",
}  # fmt: skip


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
    write = getattr(conv_kernels if name.startswith("conv_") else kernels, name)
    run_written(write, _ARGUMENTS[name], dtype, tasks, *arguments, work=work, scratch=scratch)


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
