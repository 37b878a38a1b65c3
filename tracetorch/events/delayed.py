"""Compute a linear layer with delays by the events of its input, and its input's gradient."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tracetorch.events.compiled import first_sums, full_vectors, in_graph, run, shared_out
from tracetorch.events.kernels import LANES
from tracetorch.events.linear import LEAST_INPUTS, LEAST_ROWS, additions
from tracetorch.events.lists import EventLists, by_column, save_operands, saved_operands
from tracetorch.fuse.runtime.memory import large_empty

_TILE = 5  # times the steps of the kernel that a transform is long, at least


def delayed(window: Tensor, kernel: Tensor, bias: Tensor | None, events: EventLists) -> Tensor:
    """Return ``[steps, samples, out]``, part of the graph.

    Args:
        window: past and inputs ``[samples, reach + steps, in]``, contiguous.
        kernel: ``[reach + 1, in, out]``, the oldest step first, contiguous.
        bias: ``[out]``.
        events: the events of ``window`` as a matrix ``[samples * (reach + steps), in]``.
    """
    if in_graph(window, kernel, bias):
        y: Tensor = _Delayed.apply(window, kernel, bias, events)  # type: ignore[no-untyped-call]
        return y
    return _forward(window, kernel, bias, events)


def _forward(window: Tensor, kernel: Tensor, bias: Tensor | None, events: EventLists) -> Tensor:
    samples, length, inputs = window.shape
    taps, _, outputs = kernel.shape
    reach, steps = taps - 1, length - taps + 1
    table = full_vectors(kernel.detach())
    width = table.shape[-1]
    # a list of indices for all of a window
    rows = torch.arange(events.rows, dtype=torch.int32, device="cpu")
    indices = rows.repeat_interleave(events.starts.diff(), output_size=len(events.indices))
    indices = indices.mul_(inputs).add_(events.indices)
    y = large_empty((steps, samples, width), window.dtype)
    per_task, tasks = shared_out(samples * steps, LEAST_ROWS)
    run(
        "forward",
        window.dtype,
        tasks,
        *(per_task, samples * steps, steps, reach, inputs),
        *(events.starts, indices, events.values, events.weighted, table),
        *(first_sums(table, bias), width, y),
        work=taps * additions(events, width),
    )
    # no view of another tensor, which nobody behind the layer could change in place
    return (y if width == outputs else y[..., :outputs].clone()).detach()


def _kernel_gradient(grad: Tensor, events: EventLists, steps: int, taps: int) -> Tensor:
    """Return the gradient ``[reach + 1, in, out]`` for one ``[steps, samples, out]``."""
    samples, outputs, reach = grad.shape[1], grad.shape[2], taps - 1
    width, columns = -(-outputs // LANES) * LANES, events.columns
    length = reach + steps
    # zeros behind a sample are those before the next
    table = large_empty((samples * length + reach, width), grad.dtype)
    table[samples * length :] = 0
    by_sample = table[: samples * length].view(samples, length, width)
    by_sample[:, :reach] = 0
    by_sample[:, reach:, outputs:] = 0
    by_sample[:, reach:, :outputs] = grad.transpose(0, 1)
    lists = by_column(events)
    total = large_empty((taps, columns, width), grad.dtype).zero_()
    per_task, tasks = shared_out(columns, LEAST_INPUTS)
    arguments = (
        *(per_task, columns, lists.chunks, lists.per_chunk, reach, events.starts),
        *(lists.ends, lists.sources, lists.scales, events.weighted, table, width, total),
    )
    run("backward", grad.dtype, tasks, *arguments, work=taps * additions(events, width))
    return total if width == outputs else total[..., :outputs].clone()


@lru_cache(maxsize=16)
def _transforms(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the real Fourier transform ``[2 * frequencies, length]``, and its inverse.

    Cosines are above sines. As products of matrices both leave frequencies in front, where the
    products for each of them want them.
    """
    frequencies = length // 2 + 1
    angle = torch.arange(frequencies, dtype=torch.float64).outer(torch.arange(length).double())
    angle *= 2 * math.pi / length
    both = torch.cat([angle.cos(), angle.sin()])
    scale = torch.full((frequencies,), 2 / length, dtype=torch.float64)
    scale[0] = 1 / length
    if length % 2 == 0:
        scale[-1] = 1 / length
    inverse = (both * scale.repeat(2).unsqueeze(-1)).t()
    return both.to(dtype), inverse.to(dtype).contiguous()


def _window_gradient(grad: Tensor, kernel: Tensor) -> Tensor:
    """Return the gradient ``[samples, reach + steps, in]`` for one ``[steps, samples, out]``.

    It is the convolution of the gradient with the kernel, full at both ends, and is computed as one
    product for each frequency: in a tenth of the multiplications where the kernel is 25 steps long.
    """
    steps, samples, outputs = grad.shape
    taps, inputs, _ = kernel.shape
    # tiles of gradients, whose results overlap
    tiles = max(1, round(steps / (_TILE * taps)))
    tile = -(-steps // tiles)
    length = tile + taps - 1
    transform, inverse = _transforms(length, grad.dtype)
    frequencies, rows = length // 2 + 1, tiles * samples
    if tiles * tile > steps:
        grad = torch.cat([grad, grad.new_zeros(tiles * tile - steps, samples, outputs)])

    def transformed(x: Tensor) -> Tensor:
        """Return ``[2 * frequencies, ...]`` for ``[time, ...]``."""
        flat = x.flatten(1)
        out = large_empty((2 * frequencies, flat.shape[1]), x.dtype)
        return torch.mm(transform[:, : len(x)], flat, out=out).view(-1, *x.shape[1:])

    by_tile = grad.view(tiles, tile, samples, outputs).transpose(0, 1)
    gradient = transformed(by_tile).view(2, frequencies, rows, outputs)
    # real parts above imaginary ones, for one product with either part of the kernel
    stacked = torch.cat([gradient[0], gradient[1]], 1)
    weights = transformed(kernel).view(2, frequencies, inputs, outputs).transpose(-1, -2)
    shape = (frequencies, 2 * rows, inputs)
    by_cosine, by_sine = (
        torch.bmm(stacked, part, out=large_empty(shape, grad.dtype)) for part in weights
    )
    both = large_empty((2, frequencies, rows, inputs), grad.dtype)
    torch.sub(by_cosine[:, :rows], by_sine[:, rows:], out=both[0])
    torch.add(by_cosine[:, rows:], by_sine[:, :rows], out=both[1])
    full = torch.mm(inverse, both.view(2 * frequencies, -1)).view(length, tiles, samples, inputs)
    total = grad.new_zeros(samples, tiles * tile + taps - 1, inputs)
    for n in range(tiles):
        total[:, n * tile : n * tile + length] += full[:, n].transpose(0, 1)
    return total[:, : steps + taps - 1]


class _Delayed(torch.autograd.Function):
    """Node that keeps the events of its input, and the kernel where the input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, window: Tensor, kernel: Tensor, bias: Tensor | None, events: EventLists
    ) -> Tensor:
        save_operands(ctx, kernel, events)
        ctx.taps = len(kernel)
        return _forward(window, kernel, bias, events)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, events = saved_operands(ctx, grad)
        grad = grad.resolve_neg()
        return (
            None if kernel is None else _window_gradient(grad, kernel),
            None if events is None else _kernel_gradient(grad, events, len(grad), ctx.taps),
            grad.sum((0, 1)) if ctx.needs_input_grad[2] else None,
            None,
        )
