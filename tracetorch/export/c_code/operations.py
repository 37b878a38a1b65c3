"""Read operations that are not pointwise: products, pooling, batch norm, copies, sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.reader import Reader, Rule, operation_of, path_of, refused
from tracetorch.export.c_code.stages import Copy, Pool, Product, Sum, View
from tracetorch.fuse.ir.graph import Builder, Value


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if place < len(node.args) else default


def _constant(reader: Reader, node: Node, value: Any, what: str) -> Any:
    if value is not None and value.name not in reader.constants:
        raise refused(node, f"its {what} changes from step to step")
    return None if value is None else reader.env[value].detach()


def _linear(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a linear product for every row of the source."""
    given = node.args[0]
    if operation_of(node) == "linear":
        weight = _constant(reader, node, node.args[1], "weight")
        bias = _constant(reader, node, _argument(node, 2, "bias"), "bias")
    else:
        *first, given, other = node.args
        weight = _constant(reader, node, other, "second matrix")
        bias = _constant(reader, node, first[0], "bias") if first else None
        if weight.ndim != 2 or (bias is not None and bias.ndim != 1) or node.kwargs:
            raise refused(node, f"its second matrix has {weight.ndim} dimensions, or a factor")
        weight = weight.t()
    source, target = reader.view(given), reader.new(node, made)  # type: ignore[arg-type]
    rows = [i for i, size in enumerate(source.shape[:-1]) if size > 1]
    for outer, inner in pairwise(rows):
        apart = [view.strides[inner] * view.shape[inner] for view in (source, target)]
        if apart != [view.strides[outer] for view in (source, target)]:
            raise refused(node, "its rows do not lie one behind the other in memory")
    count = math.prod(source.shape[:-1])

    def spread(view: View) -> View:
        stride = view.strides[rows[-1]] if rows else 0
        strides = (view.strides[-1], stride, 0)
        return replace(view, shape=(view.shape[-1], count, 1), strides=strides)

    table = weight[:, :, None, None]
    product = Product(path_of(node), spread(source), spread(target), table, bias)
    reader.append(node, product, target)


@dataclass(frozen=True)
class _Windows:
    """Images ``[C, H, W]`` before and after an operation on windows; of a sequence with one row."""

    source: View
    target: View
    whole: View
    line: bool

    def pair(self, value: Any, fill: int) -> tuple[int, int]:
        """Return a setting for rows and columns; of a sequence the rows have ``fill``."""
        values = [value] if isinstance(value, int) else list(value) or [fill]
        return (fill if self.line else int(values[0]), int(values[-1]))


def _windows(reader: Reader, node: Node, made: Tensor) -> _Windows:
    whole = reader.new(node, made)
    line = len(whole.shape) == 3
    images = []
    for view in (reader.view(node.args[0]), whole):  # type: ignore[arg-type]
        shape, strides = view.shape, view.strides
        if len(shape) not in (3, 4) or shape[0] != 1:
            raise refused(node, "it has more than two dimensions, or no batch")
        if line:
            shape, strides = (1, shape[1], 1, shape[2]), (0, strides[1], 0, strides[2])
        images.append(replace(view, shape=shape[1:], strides=strides[1:]))
    return _Windows(images[0], images[1], whole, line)


def _convolution(reader: Reader, node: Node, made: Tensor) -> None:
    weight = _constant(reader, node, node.args[1], "weight")
    bias = _constant(reader, node, _argument(node, 2, "bias"), "bias")
    at = _windows(reader, node, made)
    stride = at.pair(_argument(node, 3, "stride", 1), 1)
    dilation = at.pair(_argument(node, 5, "dilation", 1), 1)
    given = _argument(node, 4, "padding", 0)
    table = weight[:, :, None] if at.line else weight
    if given == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, table.shape[2:], strict=True)]
        # of an odd span PyTorch pads more behind than before
        padding = (spans[0] // 2, spans[1] // 2)
    else:
        padding = at.pair(0 if given == "valid" else given, 0)
    settings = (stride, padding, dilation, _argument(node, 6, "groups", 1))
    product = Product(path_of(node), at.source, at.target, table, bias, *settings)
    reader.append(node, product, at.whole)


def _pool(reader: Reader, node: Node, made: Tensor) -> None:
    at = _windows(reader, node, made)
    maximum = operation_of(node).startswith("max")
    dilation, divisor = 1, 0
    if maximum:
        dilation = _argument(node, 4, "dilation", 1)
    else:
        inside = _argument(node, 5, "count_include_pad", True)
        divisor = _argument(node, 6, "divisor_override") or (0 if inside else -1)
    kernel = at.pair(node.args[1], 1)
    stride = at.pair(_argument(node, 2, "stride") or node.args[1], 1)
    padding = at.pair(_argument(node, 3, "padding", 0), 0)
    settings = (maximum, kernel, stride, padding, at.pair(dilation, 1), divisor)
    reader.append(node, Pool(path_of(node), at.source, at.target, *settings), at.whole)


def _adaptive_pool(reader: Reader, node: Node, made: Tensor) -> None:
    at = _windows(reader, node, made)
    pairs = list(zip(at.source.shape[1:], at.target.shape[1:], strict=True))
    if any(size % into for size, into in pairs):
        raise refused(node, "its windows are of different sizes")
    kernel = (pairs[0][0] // pairs[0][1], pairs[1][0] // pairs[1][1])
    pool = Pool(path_of(node), at.source, at.target, False, kernel, kernel, (0, 0))
    reader.append(node, pool, at.whole)


def _batch_norm(reader: Reader, node: Node, made: Any) -> None:
    """Append a batch norm as a scale and a shift, which are constant in evaluation."""
    weight, bias = (_constant(reader, node, each, "affine map") for each in node.args[1:3])
    mean, variance = (_constant(reader, node, each, "statistics") for each in node.args[3:5])
    eps: Any = node.args[6]
    scale = 1 / torch.sqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    value: Tensor = made[0]
    shape = [1, -1] + [1] * (value.ndim - 2)

    def emit(operand: Callable[[Any], Value], builder: Builder) -> Value:
        scaled = builder.emit("mul", operand(node.args[0]), operand(scale.view(shape)))
        return builder.emit("add", scaled, operand(shift.view(shape)))

    reader.emitted(node, value, emit)


def _joined(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a copy of every part into the whole."""
    parts: Any = node.args[0]
    dim = int(_argument(node, 1, "dim", 0)) % made.ndim
    views = [reader.view(each) for each in parts if reader.env[each].numel()]
    target, at = reader.new(node, made), 0
    for view in views:
        if operation_of(node) == "stack":
            view = replace(
                view,
                shape=(*view.shape[:dim], 1, *view.shape[dim:]),
                strides=(*view.strides[:dim], 0, *view.strides[dim:]),
            )
        part = View(target.array, view.shape, target.strides, at * target.strides[dim])
        reader.append(node, Copy(path_of(node), view, part), target)
        at += view.shape[dim]


def _copy(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a copy in another order of memory, unless none is needed."""
    if reader.aliased(node, made):
        return
    given: Any = node.args[0]
    if reader.env[given].dtype != made.dtype:
        reader.pointwise(node, "_to_copy", made)
        return
    source, target = reader.view(given), reader.new(node, made)
    reader.append(node, Copy(path_of(node), source, target), target)


def _chosen(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a copy from places that constants choose: run on the numbers of the places."""
    given: Any = node.args[0]
    if any(n is not given and n.name not in reader.constants for n in node.all_input_nodes):
        raise refused(node, "the places that it reads change from step to step")
    source = reader.view(given)
    numbers = source.places()
    args, kwargs = pytree.tree_map_only(
        Node, lambda each: numbers if each is given else reader.env[each], (node.args, node.kwargs)
    )
    chosen: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    table = reader.table(chosen.flatten().contiguous(), "places").array
    target = reader.new(node, made.contiguous())
    flat = View(source.array, (source.array.size,), (1,))
    reader.append(node, Copy(path_of(node), flat, target, table), target)


def _summed(reader: Reader, node: Node, made: Tensor) -> None:
    source, target = reader.view(node.args[0]), reader.new(node, made.contiguous())  # type: ignore[arg-type]
    ndim = len(source.shape)
    chosen = sorted(int(d) % ndim for d in _argument(node, 1, "dim") or range(ndim))
    kept = [d for d in range(ndim) if d not in chosen]
    order = [*kept, *chosen]
    shape = tuple(source.shape[d] for d in order)
    view = replace(source, shape=shape, strides=tuple(source.strides[d] for d in order))
    into = View(target.array, shape[: len(kept)], torch.empty(shape[: len(kept)]).stride())
    count = source.size // target.size if operation_of(node) == "mean" else 1
    reader.append(node, Sum(path_of(node), view, into, len(chosen), count), target)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "matmul", "mm", "addmm"), _linear),
    **dict.fromkeys(("conv1d", "conv2d"), _convolution),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"), _pool),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive_pool
    ),
    "_native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("clone", "contiguous", "reshape", "_to_copy", "to"), _copy),
    **dict.fromkeys(("gather", "index_select", "flip", "roll", "repeat"), _chosen),
    **dict.fromkeys(("sum", "mean"), _summed),
}
