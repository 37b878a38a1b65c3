"""Compute a two-dimensional convolution with the events of its input, forward and backward."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import front_padding, output_size
from tracetorch.events import conv_kernels
from tracetorch.events.crossover import CONV_TASKS
from tracetorch.events.kernels import LANES
from tracetorch.events.lists import EventLists
from tracetorch.events.product import ProductKind, first_sums
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.threads import run_written

_NO_PAIRS = "stride, padding and dilation are not pairs"
_NO_PLACE = "the kernel does not fit into the images"


class Window(NamedTuple):
    """The window of a convolution, each value for rows and columns."""

    stride: tuple[int, int]  # from one output to the next
    padding: tuple[int, int]  # zeros above and to the left
    dilation: tuple[int, int]  # from one value of the kernel to the next
    size: tuple[int, int]  # rows and columns of the output


@lru_cache(maxsize=1024)
def window_of(
    image: tuple[int, ...],
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> Window | str:
    """Return the window of a convolution, or why it must be dense, for its shapes and options."""
    if len(image) != 4 or 0 in image or len(weight) != 4 or image[1] != weight[1]:
        return "the shapes are not those of images and a weight"
    pairs = [stride, dilation] if isinstance(padding, str) else [stride, dilation, padding]
    if any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        return _NO_PAIRS
    reach = [d * (k - 1) for d, k in zip(dilation, weight[2:], strict=True)]
    before = front_padding(padding, weight[2:], dilation)
    if min(*stride, *dilation) < 1:
        return _NO_PLACE
    rows, columns = map(output_size, image[2:], weight[2:], stride, before, dilation)
    if min(rows, columns) < 1:
        return _NO_PLACE
    if padding == "same" and any(each % 2 for each in reach):
        return "the padding is not the same on both sides"
    (down, right), (top, left), (apart, beside) = stride, before, dilation
    return Window((down, right), (top, left), (apart, beside), (rows, columns))


def window(module: nn.Conv2d, x: Tensor) -> Window | str:
    """Return the window of a layer for an input, or why it must be dense."""
    if module.groups != 1 or module.padding_mode != "zeros":
        return "the convolution has groups, or pads with other values than 0"
    stride, padding, dilation = module.stride, module.padding, module.dilation
    if type(stride) is not tuple or type(dilation) is not tuple:
        return _NO_PAIRS
    if type(padding) is not tuple and not isinstance(padding, str):
        return _NO_PAIRS
    if not module.weight.is_contiguous():
        return "the weight is not contiguous"
    return window_of(x.shape, module.weight.shape, stride, padding, dilation)


def _sizes(shape: tuple[int, ...], weight: tuple[int, ...], at: Window) -> tuple[int, ...]:
    """Return the integers that both kernels take."""
    outputs = weight[0]
    lanes = -(-outputs // LANES) * LANES
    return (
        *shape[1:], *weight[2:], *at.stride, *at.padding, *at.dilation, *at.size, *(outputs, lanes),
    )  # fmt: skip


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: Window
) -> Tensor:
    outputs, inputs, *extent = weight.shape
    images, _, height, width = x.shape
    sizes = _sizes(x.shape, weight.shape, at)
    lanes = sizes[-1]
    table = weight.new_zeros((*extent, inputs, lanes))
    table[..., :outputs] = weight.detach().permute(2, 3, 1, 0)
    y = large_empty((images, outputs, *at.size), x.dtype)
    places, most, item = at.size[0] * at.size[1], inputs * height * width, x.itemsize
    work = y.numel() + len(events.indices) * lanes * extent[0] * extent[1]
    scratch = places * lanes * item, 8 * (height * width + 2), 4 * most, item * most
    sums: tuple[int | Tensor, ...] = (table, first_sums(table, bias), y)
    arguments = (*sizes, events.weighted, *events[1:], *sums)
    letters = "i" * 16 + "lnrrrr"
    kernel = conv_kernels.conv_forward
    run_written(kernel, letters, x.dtype, images, *arguments, work=work, scratch=scratch)
    return y.detach()


def _by_weight(
    grad: Tensor, events: EventLists, shape: torch.Size, weight: torch.Size, at: Window
) -> Tensor:
    grad = grad.contiguous()
    outputs, inputs, *extent = weight
    images, _, height, width = shape
    sizes = _sizes(shape, weight, at)
    lanes = sizes[-1]
    padded = [
        max(length + pad, (size - 1) * stride + 1) + dilation * (kernel - 1)
        for length, pad, size, stride, dilation, kernel in zip(
            *((height, width), at.padding, at.size, at.stride, at.dilation, extent), strict=True
        )
    ]
    per_task = -(-images // CONV_TASKS)
    tasks = -(-images // per_task)
    total = grad.new_zeros((tasks, inputs, *extent, lanes))
    work = grad.numel() + len(events.indices) * lanes * extent[0] * extent[1]
    scratch = padded[0] * padded[1] * lanes * grad.itemsize, 4 * height * width
    counts = (per_task, images, *sizes, events.weighted, *padded)
    arguments = (*counts, *events[1:], grad, total)
    letters = "i" * 20 + "lnrrr"
    kernel = conv_kernels.conv_backward
    run_written(kernel, letters, grad.dtype, tasks, *arguments, work=work, scratch=scratch)
    summed = total[0]
    for part in total[1:]:
        summed += part
    return summed.flip(2)[..., :outputs].permute(3, 0, 1, 2).contiguous()


def _by_input(grad: Tensor, weight: Tensor, shape: torch.Size, at: Window) -> Tensor:
    # the values of the input are not looked at for its own gradient
    like = grad.new_empty(1).expand(shape)
    found: Tensor = torch.ops.aten.convolution_backward(
        *(grad, like, weight, None, at.stride, at.padding, at.dilation),
        *(False, [0, 0], 1, [True, False, False]),
    )[0]
    return found


CONV = ProductKind(_forward, _by_input, _by_weight, lambda grad: grad.sum((0, 2, 3)))
"""``x`` is ``[images, in, height, width]``, contiguous, and events are those of it as a matrix
``[images * in, height * width]``; ``at`` is the window."""
