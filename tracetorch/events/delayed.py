"""Compute a linear layer with delays by the events of its input, forward and backward."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from tracetorch.events.compiled import full_vectors
from tracetorch.events.kernels import LANES
from tracetorch.events.linear import add_rows, sum_rows
from tracetorch.events.lists import EventLists
from tracetorch.events.node import ProductKind
from tracetorch.fuse.runtime.allocation import large_empty

_TILE = 5  # times the steps of the kernel that a transform is long, at least


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: None
) -> Tensor:
    samples, length, inputs = x.shape
    taps, _, outputs = weight.shape
    reach, steps = taps - 1, length - taps + 1
    table = full_vectors(weight.detach())
    width = table.shape[-1]
    # a list of indices for all of a window
    rows = torch.arange(events.rows, dtype=torch.int32, device="cpu")
    indices = rows.repeat_interleave(events.starts.diff(), output_size=len(events.indices))
    indices = indices.mul_(inputs).add_(events.indices)
    y = large_empty((steps, samples, width), x.dtype)
    sum_rows(y, table, bias, events, indices, (steps, reach, inputs))
    # no view of another tensor, which nobody behind the layer could change in place
    return (y if width == outputs else y[..., :outputs].clone()).detach()


def _by_weight(
    grad: Tensor, events: EventLists, shape: torch.Size, weight: torch.Size, at: None
) -> Tensor:
    steps, samples, outputs = grad.shape
    width, reach = -(-outputs // LANES) * LANES, weight[0] - 1
    length = reach + steps
    # zeros behind a sample are those before the next
    table = large_empty((samples * length + reach, width), grad.dtype)
    table[samples * length :] = 0
    by_sample = table[: samples * length].view(samples, length, width)
    by_sample[:, :reach] = 0
    by_sample[:, reach:, outputs:] = 0
    by_sample[:, reach:, :outputs] = grad.transpose(0, 1)
    total = large_empty((reach + 1, events.columns, width), grad.dtype).zero_()
    add_rows(total, table, events, reach)
    return total if width == outputs else total[..., :outputs].clone()


@lru_cache(maxsize=16)
def _transforms(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the real Fourier transform, cosines above sines, and its inverse, as matrices."""
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


DELAYED = ProductKind(
    _forward,
    lambda grad, weight, shape, at: _window_gradient(grad.resolve_neg(), weight),
    _by_weight,
    lambda grad: grad.resolve_neg().sum((0, 1)),
)
"""``x``, past and inputs, is ``[samples, reach + steps, in]``, contiguous, and events are those of
it as a matrix; the weight ``[reach + 1, in, out]``, the oldest step first; the output ``[steps,
samples, out]``."""
