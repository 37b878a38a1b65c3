"""What each of PyTorch's modules is in NIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracetorch.nir.graph import Node, Shape
from tracetorch.nir.writing import Writing

LINEAR = ("Affine", "Conv1d", "Conv2d", "Linear")
# What passes its input on where nothing is trained.
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def array(value: Tensor) -> NDArray[Any]:
    """A parameter as NIR keeps it: float64 and float32 as they are, others in float32."""
    value = value.detach().cpu()
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    return np.array(value.numpy())


def _linear(m: nn.Linear, shape: Shape, told: str, how: Writing) -> Node:
    if len(shape) != 1:
        raise ValueError(
            f"{told} is applied to {list(shape)}; in NIR it takes one dimension. Put nn.Flatten() "
            "before it."
        )
    if m.bias is None:
        return Node("Linear", {"weight": array(m.weight)})
    return Node("Affine", {"weight": array(m.weight), "bias": array(m.bias)})


def _conv(m: nn.Conv1d | nn.Conv2d, shape: Shape, told: str, how: Writing) -> Node:
    if m.padding_mode != "zeros":
        raise ValueError(f"{told} pads by {m.padding_mode!r}; NIR pads with zeros.")
    weight = array(m.weight)
    groups = m.groups
    if how.mode == "compact" and groups > 1:  # peers read one group only
        weight, groups = _ungrouped(weight, groups), 1
    bias = np.zeros(len(weight), weight.dtype) if m.bias is None else array(m.bias)
    settings = {
        "input_shape": shape[1:],
        "stride": m.stride,
        "padding": m.padding,
        "dilation": m.dilation,
        "groups": groups,
    }
    kind = "Conv1d" if isinstance(m, nn.Conv1d) else "Conv2d"
    return Node(kind, {"weight": weight, "bias": bias}, settings)


def _ungrouped(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """The same convolution with one group: zero between channels of different groups."""
    out, inner = weight.shape[:2]
    whole = np.zeros((out, inner * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        whole[rows, g * inner : (g + 1) * inner] = weight[rows]
    return whole


def _average(m: nn.AvgPool2d, shape: Shape, told: str, how: Writing) -> Node:
    settings = {
        "kernel_size": _pair(m.kernel_size),
        "stride": _pair(m.stride),
        "padding": _pair(m.padding),
    }
    if m.ceil_mode:
        raise ValueError(f"{told} has ceil_mode=True, which NIR does not have.")
    if not m.count_include_pad and any(settings["padding"]):
        raise ValueError(f"{told} has count_include_pad=False; NIR counts the padding.")
    if m.divisor_override == 1:
        return Node("SumPool2d", settings=settings)
    if m.divisor_override not in (None, int(np.prod(settings["kernel_size"]))):
        raise ValueError(f"{told} divides by {m.divisor_override}; NIR sums, or takes the mean.")
    return Node("AvgPool2d", settings=settings)


def _adaptive(m: nn.AdaptiveAvgPool2d, shape: Shape, told: str, how: Writing) -> Node:
    goal = tuple(m.output_size) if isinstance(m.output_size, tuple) else (m.output_size,) * 2
    sizes = tuple(n if g is None else g for n, g in zip(shape[1:], goal, strict=True))
    if any(n % g for n, g in zip(shape[1:], sizes, strict=True)):
        raise ValueError(
            f"{told} makes {list(sizes)} of {list(shape[1:])}, which windows of one size do not "
            "divide. Use nn.AvgPool2d."
        )
    window = tuple(n // g for n, g in zip(shape[1:], sizes, strict=True))
    return Node("AvgPool2d", settings={"kernel_size": window, "stride": window, "padding": (0, 0)})


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _flatten(m: nn.Flatten, shape: Shape, told: str, how: Writing) -> Node:
    return flatten(m.start_dim, m.end_dim, shape, told)


def flatten(start: int, end: int, shape: Shape, told: str) -> Node:
    """A Flatten; PyTorch counts dimensions with the batch, NIR without."""
    ndim = len(shape) + 1
    first = start + ndim if start < 0 else start
    last = end + ndim if end < 0 else end
    if not 1 <= first <= last < ndim:
        raise ValueError(
            f"{told} flattens from {start} to {end}, which leaves no batch in front. Use "
            "start_dim=1."
        )
    return Node(
        "Flatten", settings={"input_type": shape, "start_dim": first - 1, "end_dim": last - 1}
    )


def _norm(m: Any, shape: Shape, told: str, how: Writing) -> Node:
    """A batch norm by itself: a matrix with a diagonal, or a convolution of one pixel."""
    scale, shift = normalising(m, told)
    if len(shape) == 1:
        return Node("Affine", {"weight": np.diag(scale), "bias": shift})
    spatial = len(shape) - 1
    settings = {
        "input_shape": shape[1:],
        "stride": (1,) * spatial,
        "padding": (0,) * spatial,
        "dilation": (1,) * spatial,
        "groups": 1,
    }
    weight = np.diag(scale).reshape(len(scale), len(scale), *[1] * spatial)
    return Node(f"Conv{spatial}d", {"weight": weight, "bias": shift}, settings)


def normalising(m: Any, told: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Factor and summand per channel of a batch norm that no longer learns."""
    if m.training or m.running_mean is None or m.running_var is None:
        raise ValueError(
            f"{told} takes its statistics from the batch. Call model.eval() before the export; "
            "it needs track_running_stats=True."
        )
    dtype = m.running_mean.dtype
    scale = 1 / torch.sqrt(m.running_var.double() + m.eps)
    if m.weight is not None:
        scale = scale * m.weight.detach().double()
    shift = -m.running_mean.double() * scale
    if m.bias is not None:
        shift = shift + m.bias.detach().double()
    return array(scale.to(dtype)), array(shift.to(dtype))


def folded(node: Node, scale: NDArray[Any], shift: NDArray[Any]) -> Node:
    """The linear node before a batch norm, and the norm, in one."""
    weight = node.arrays["weight"]
    tall = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    bias = shift.astype(np.float64)
    if "bias" in node.arrays:
        bias = bias + node.arrays["bias"] * scale.astype(np.float64)
    arrays = {"weight": (weight * tall).astype(weight.dtype), "bias": bias.astype(weight.dtype)}
    kind = "Affine" if node.kind == "Linear" else node.kind
    return Node(kind, arrays, node.settings, node.metadata)


PLAIN: Mapping[type[nn.Module], Callable[[Any, Shape, str, Writing], Node]] = {
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AvgPool2d: _average,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
}
