"""Compute a two-dimensional convolution with the events of its input, forward and backward."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.convolution import output_size
from tracetorch.events.compiled import first_sums, in_graph, run
from tracetorch.events.crossover import CONV_TASKS
from tracetorch.events.kernels import LANES
from tracetorch.events.lists import EventLists, save_operands, saved_operands
from tracetorch.fuse.runtime.memory import large_empty

_NO_PAIRS = "stride, padding and dilation are not pairs"
_NO_PLACE = "the kernel does not fit into the images"


class Window(NamedTuple):
    """The window of a convolution, each value for rows and columns.

    Args:
        stride: from one output to the next.
        padding: zeros above and to the left.
        dilation: from one value of the kernel to the next.
        size: rows and columns of the output.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]


@lru_cache(maxsize=1024)
def window_of(
    image: tuple[int, ...],
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> Window | str:
    """Return the window of a convolution, or why it must be dense.

    Args:
        image: shape of the input.
        weight: shape of the weight.
        stride: as the layer has it.
        padding: the same.
        dilation: the same.
    """
    if len(image) != 4 or 0 in image or len(weight) != 4 or image[1] != weight[1]:
        return "the shapes are not those of images and a weight"
    pairs = [stride, dilation] if isinstance(padding, str) else [stride, dilation, padding]
    if any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        return _NO_PAIRS
    reach = [d * (k - 1) for d, k in zip(dilation, weight[2:], strict=True)]
    if padding == "same":
        before = [each // 2 for each in reach]
    elif isinstance(padding, str):  # "valid"
        before = [0, 0]
    else:
        before = list(map(int, padding))
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
    """Return the window of a layer at the shapes of a call, or why it must be dense.

    Args:
        module: the layer.
        x: its input.
    """
    if module.groups != 1 or module.padding_mode != "zeros":
        return "the convolution has groups, or pads with other values than 0"
    stride, padding, dilation = module.stride, module.padding, module.dilation
    if type(stride) is not tuple or type(dilation) is not tuple:
        return _NO_PAIRS
    if type(padding) is not tuple and not isinstance(padding, str):
        return _NO_PAIRS
    return window_of(x.shape, module.weight.shape, stride, padding, dilation)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: Window) -> Tensor:
    """Return the convolution of images, part of the graph, by their events.

    Args:
        x: ``[images, in, height, width]``, contiguous.
        weight: ``[out, in, kernel height, kernel width]``.
        bias: ``[out]``.
        events: the events of ``x`` as a matrix ``[images * in, height * width]``.
        at: the window.
    """
    if in_graph(x, weight, bias):
        y: Tensor = _Conv.apply(x, weight, bias, events, at)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, weight, bias, events, at)


def _sizes(shape: tuple[int, ...], weight: tuple[int, ...], at: Window) -> tuple[int, ...]:
    """Return the integers that both kernels take."""
    outputs = weight[0]
    lanes = -(-outputs // LANES) * LANES
    return (
        *shape[1:],
        *weight[2:],
        *at.stride,
        *at.padding,
        *at.dilation,
        *at.size,
        *(outputs, lanes),
    )


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
    places = at.size[0] * at.size[1]
    most = inputs * height * width
    item = x.itemsize
    run(
        "conv_forward",
        x.dtype,
        images,
        *sizes,
        events.weighted,
        *events[1:],
        *(table, first_sums(table, bias), y),
        work=y.numel() + len(events.indices) * lanes * extent[0] * extent[1],
        scratch=(places * lanes * item, 8 * (height * width + 2), 4 * most, item * most),
    )
    return y.detach()


def _weight_gradient(
    grad: Tensor, weight: tuple[int, ...], shape: tuple[int, ...], events: EventLists, at: Window
) -> Tensor:
    """Return the gradient of the weight for the contiguous gradient of the output."""
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
    run(
        "conv_backward",
        grad.dtype,
        tasks,
        per_task,
        images,
        *sizes,
        events.weighted,
        *padded,
        *events[1:],
        grad,
        total,
        work=grad.numel() + len(events.indices) * lanes * extent[0] * extent[1],
        scratch=(padded[0] * padded[1] * lanes * grad.itemsize, 4 * height * width),
    )
    summed = total[0]
    for part in total[1:]:
        summed += part
    return summed.flip(2)[..., :outputs].permute(3, 0, 1, 2).contiguous()


class _Conv(torch.autograd.Function):
    """Node that keeps the events of its input, and the weight where the input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, events: EventLists, at: Window
    ) -> Tensor:
        save_operands(ctx, weight, events)
        ctx.window, ctx.shape, ctx.weight_shape = at, x.shape, weight.shape
        return _forward(x, weight, bias, events, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, events = saved_operands(ctx, grad)
        at: Window = ctx.window
        d_x = d_weight = None
        if weight is not None:
            # the values of the input are not looked at for its own gradient
            like = grad.new_empty(1).expand(ctx.shape)
            d_x = torch.ops.aten.convolution_backward(
                *(grad, like, weight, None, at.stride, at.padding, at.dilation),
                *(False, [0, 0], 1, [True, False, False]),
            )[0]
        if events is not None:
            flat = grad.resolve_neg().contiguous()
            d_weight = _weight_gradient(flat, ctx.weight_shape, ctx.shape, events, at)
        d_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, None, None
