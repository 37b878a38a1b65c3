"""Infer the shape of a node's output from the shape of its input; shapes have no batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tracetorch.core.convolution import output_size
from tracetorch.nir.graph import LAYER, Node, Shape


def output_shape(node: Node, shape: Shape) -> Shape:
    """Return the shape of the output; raise where the input or a parameter does not fit."""
    return _RULES.get(node.kind, _elementwise)(node, shape)


def _elementwise(node: Node, shape: Shape) -> Shape:
    for name, value in node.arrays.items():
        if value.size != 1 and value.shape != shape:
            got = f"{name} has shape {list(value.shape)}, the input {list(shape)}"
            raise ValueError(f"{got}. NIR wants one value per element.")
    return shape


def _weight_shape(node: Node, ndim: int) -> Shape:
    weight, bias = node.arrays["weight"], node.arrays.get("bias")
    if weight.ndim != ndim:
        raise ValueError(f"weight must have {ndim} dimensions, got shape {list(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {[len(weight)]}, got {list(bias.shape)}.")
    return weight.shape


def _linear(node: Node, shape: Shape) -> Shape:
    outputs, inputs = _weight_shape(node, ndim=2)
    if shape != (inputs,):
        problem = f"a weight of shape {[outputs, inputs]} takes {[inputs]}, the input has"
        raise ValueError(f"{problem} {list(shape)}. Put a Flatten before it.")
    return (outputs,)


def _conv(node: Node, shape: Shape) -> Shape:
    spatial = 1 if node.kind == "Conv1d" else 2
    outputs, inputs, *kernel = _weight_shape(node, ndim=2 + spatial)
    s, channels = node.settings, inputs * node.settings["groups"]
    if outputs % s["groups"]:
        raise ValueError(f"{s['groups']} groups do not divide {outputs} channels.")
    if len(shape) != 1 + spatial or shape[0] != channels:
        expected = f"{channels} channels and {spatial} more dimensions"
        raise ValueError(f"its weight takes {expected}, the input has shape {list(shape)}.")
    _check_declared(s["input_shape"], shape[1:])
    if s["padding"] == "same":
        if any(step != 1 for step in s["stride"]):
            raise ValueError(f"padding 'same' goes with stride 1, got {list(s['stride'])}.")
        return (outputs, *shape[1:])
    padding = (0,) * spatial if s["padding"] == "valid" else s["padding"]
    return (outputs, *_windows(shape[1:], tuple(kernel), s["stride"], padding, s["dilation"]))


def _pool(node: Node, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it takes [C, H, W], the input has shape {list(shape)}.")
    kernel, stride, padding = (node.settings[n] for n in ("kernel_size", "stride", "padding"))
    for size, side in zip(kernel, padding, strict=True):
        if 2 * side > size:
            raise ValueError(f"padding {side} is more than half of the kernel's {size}.")
    return (shape[0], *_windows(shape[1:], kernel, stride, padding, (1, 1)))


def _windows(sizes: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Shape:
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    outputs = tuple(output_size(*options) for options in each)
    if min(outputs) < 1:
        raise ValueError(f"a kernel of {list(kernel)} does not fit an input of {list(sizes)}.")
    return outputs


def _flatten(node: Node, shape: Shape) -> Shape:
    _check_declared(node.settings["input_type"], shape)
    start, end = flattened_dims(node, shape)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def flattened_dims(node: Node, shape: Shape) -> tuple[int, int]:
    """Return the first and last dimension that a Flatten joins, counted from the front."""
    first, last = node.settings["start_dim"], node.settings["end_dim"]
    start, end = (dim + len(shape) if dim < 0 else dim for dim in (first, last))
    if not 0 <= start <= end < len(shape):
        problem = f"start_dim {first} and end_dim {last} do not fit an input of shape"
        raise ValueError(f"{problem} {list(shape)} (NIR counts without the batch).")
    return start, end


def _check_declared(declared: Shape | None, shape: Shape) -> Shape:
    if declared is not None and declared != shape:
        raise ValueError(f"it is declared for {list(declared)}, and gets {list(shape)}.")
    return shape


_RULES: Mapping[str, Callable[[Node, Shape], Shape]] = {
    **dict.fromkeys(("Affine", "Linear"), _linear),
    **dict.fromkeys(("AvgPool2d", "SumPool2d"), _pool),
    **dict.fromkeys(("Conv1d", "Conv2d"), _conv),
    **dict.fromkeys(
        ("Input", "Output", LAYER), lambda n, s: _check_declared(n.settings["shape"], s)
    ),
    "Flatten": _flatten,
}
