"""The shape of what leaves a node, from the shape of what comes in; shapes have no batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tracetorch.nir.graph import Node, Shape


def leaving(name: str, node: Node, shape: Shape) -> Shape:
    """The shape of a node's output.

    Args:
        name: the node's name, for messages.
        node: the node.
        shape: the shape of its input.

    Raises:
        ValueError: the input does not fit the node.
    """
    try:
        return _RULES.get(node.kind, _elementwise)(node, shape)
    except ValueError as wrong:
        raise ValueError(f"node {name!r} ({node.kind}): {wrong}") from wrong


def _elementwise(node: Node, shape: Shape) -> Shape:
    for array, value in node.arrays.items():
        if value.size != 1 and value.shape != shape:
            raise ValueError(
                f"{array} has shape {list(value.shape)}, the input {list(shape)}. NIR wants one "
                "value per element."
            )
    return shape


def _linear(node: Node, shape: Shape) -> Shape:
    weight = node.arrays["weight"]
    if shape != (weight.shape[1],):
        raise ValueError(
            f"a weight of shape {list(weight.shape)} takes [{weight.shape[1]}], the input has "
            f"{list(shape)}. Flatten comes first."
        )
    return (weight.shape[0],)


def _conv(node: Node, shape: Shape) -> Shape:
    weight = node.arrays["weight"]
    spatial = weight.ndim - 2
    channels = weight.shape[1] * node.settings["groups"]
    if len(shape) != 1 + spatial or shape[0] != channels:
        raise ValueError(
            f"a weight of shape {list(weight.shape)} takes {channels} channels and {spatial} more "
            f"dimensions, the input has shape {list(shape)}."
        )
    _as_declared(node.settings["input_shape"], shape[1:])
    padding, stride = node.settings["padding"], node.settings["stride"]
    dilation = node.settings["dilation"]
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding 'same' goes with stride 1, got {list(stride)}.")
        return (weight.shape[0], *shape[1:])
    sides = (0,) * spatial if padding == "valid" else padding
    return (weight.shape[0], *_slid(shape[1:], weight.shape[2:], stride, sides, dilation))


def _pool(node: Node, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it takes [C, H, W], the input has shape {list(shape)}.")
    s = node.settings
    for size, side in zip(s["kernel_size"], s["padding"], strict=True):
        if 2 * side > size:
            raise ValueError(f"padding {side} is more than half of the kernel's {size}.")
    return (shape[0], *_slid(shape[1:], s["kernel_size"], s["stride"], s["padding"], (1, 1)))


def _slid(sizes: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Shape:
    """PyTorch's sizes: ``floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``."""
    out = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise ValueError(f"a kernel of {list(kernel)} does not fit an input of {list(sizes)}.")
        out.append(room // s + 1)
    return tuple(out)


def _flatten(node: Node, shape: Shape) -> Shape:
    _as_declared(node.settings["input_type"], shape)
    start, end = flattened(node, shape)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def flattened(node: Node, shape: Shape) -> tuple[int, int]:
    """First and last dimension that a Flatten joins, counted from the front."""
    first, last = node.settings["start_dim"], node.settings["end_dim"]
    start = first + len(shape) if first < 0 else first
    end = last + len(shape) if last < 0 else last
    if not 0 <= start <= end < len(shape):
        raise ValueError(
            f"start_dim {first} and end_dim {last} do not fit an input of shape {list(shape)} "
            "(NIR counts without the batch)."
        )
    return start, end


def _as_declared(declared: Shape | None, came: Shape) -> None:
    if declared is not None and declared != came:
        raise ValueError(f"it is declared for {list(declared)}, and gets {list(came)}.")


def _fixed(node: Node, shape: Shape) -> Shape:
    if node.settings["shape"] != shape:
        raise ValueError(
            f"it is declared with shape {list(node.settings['shape'])}, and gets {list(shape)}."
        )
    return shape


_RULES: Mapping[str, Callable[[Node, Shape], Shape]] = {
    "Affine": _linear,
    "AvgPool2d": _pool,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Flatten": _flatten,
    "Input": _fixed,
    "Linear": _linear,
    "Output": _fixed,
    "SumPool2d": _pool,
}
