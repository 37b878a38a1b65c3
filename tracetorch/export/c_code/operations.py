"""Read operations that are not pointwise: products, pooling, batch norm, copies, sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.reader import Reader, Rule, path_of, refused
from tracetorch.export.c_code.stages import Copy, Pool, Product, Sum, View
from tracetorch.fuse.ir.graph import Builder, Value


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if place < len(node.args) else default


def _optional(reader: Reader, node: Node, value: Any, what: str) -> Tensor | None:
    return None if value is None else _constant(reader, node, value, what)


def _constant(reader: Reader, node: Node, value: Any, what: str) -> Tensor:
    if value.name not in reader.constants:
        raise refused(node, f"its {what} changes from step to step")
    tensor: Tensor = reader.env[value]
    return tensor.detach()


def _linear(reader: Reader, node: Node, made: Tensor) -> None:
    weight = _constant(reader, node, node.args[1], "weight")
    bias = _optional(reader, node, _argument(node, 2, "bias"), "bias")
    _rows(reader, node, node.args[0], weight, bias, made)


def _matmul(reader: Reader, node: Node, made: Tensor) -> None:
    weight = _constant(reader, node, node.args[1], "second matrix")
    if weight.ndim != 2:
        raise refused(node, f"its second matrix has {weight.ndim} dimensions")
    _rows(reader, node, node.args[0], weight.t(), None, made)


def _addmm(reader: Reader, node: Node, made: Tensor) -> None:
    bias = _constant(reader, node, node.args[0], "bias")
    weight = _constant(reader, node, node.args[2], "second matrix")
    if bias.ndim != 1 or node.kwargs:
        raise refused(node)
    _rows(reader, node, node.args[1], weight.t(), bias, made)


def _rows(
    reader: Reader, node: Node, given: Any, weight: Tensor, bias: Tensor | None, made: Tensor
) -> None:
    """Append a linear product for every row of the source."""
    source, target = reader.view(given), reader.new(node, made)
    rows = [i for i, size in enumerate(source.shape[:-1]) if size > 1]
    for outer, inner in pairwise(rows):
        apart = [view.strides[inner] * view.shape[inner] for view in (source, target)]
        if apart != [view.strides[outer] for view in (source, target)]:
            raise refused(node, "its rows do not lie one behind the other in memory")
    place = rows[-1] if rows else 0
    count = math.prod(source.shape[:-1])

    def spread(view: View) -> View:
        stride = view.strides[place] if rows else 0
        shape = (view.shape[-1], count, 1)
        return View(view.array, shape, (view.strides[-1], stride, 0), view.offset)

    table = weight[:, :, None, None]
    reader.append(
        node, Product(path_of(node), spread(source), spread(target), table, bias, node.name)
    )
    reader.views[node.name] = target


def _pair(value: Any, fill: int) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    values = values or [fill]
    return (int(values[0]), int(values[-1]))


def _image(view: View) -> View | None:
    """Return ``[C, H, W]`` of a batch of one, or ``None``; a sequence is an image of one row."""
    shape, strides = view.shape, view.strides
    if len(shape) == 4 and shape[0] == 1:
        return View(view.array, shape[1:], strides[1:], view.offset)
    if len(shape) == 3 and shape[0] == 1:
        flat = (shape[1], 1, shape[2]), (strides[1], 0, strides[2])
        return View(view.array, *flat, view.offset)
    return None


def _flat(one_dimension: bool, value: tuple[int, int], fill: int) -> tuple[int, int]:
    return (fill, value[1]) if one_dimension else value


def _convolution(reader: Reader, node: Node, made: Tensor) -> None:
    weight = _constant(reader, node, node.args[1], "weight")
    bias = _optional(reader, node, _argument(node, 2, "bias"), "bias")
    source, target = reader.view(node.args[0]), reader.new(node, made)  # type: ignore[arg-type]
    before, after = _image(source), _image(target)
    if before is None or after is None:
        raise refused(node, "it has more than two dimensions, or no batch")
    line = weight.ndim == 3
    stride = _flat(line, _pair(_argument(node, 3, "stride", 1), 1), 1)
    dilation = _flat(line, _pair(_argument(node, 5, "dilation", 1), 1), 1)
    given = _argument(node, 4, "padding", 0)
    table = weight[:, :, None] if line else weight
    if isinstance(given, str):
        spans = [d * (k - 1) for d, k in zip(dilation, table.shape[2:], strict=True)]
        # of an odd span PyTorch pads more behind than before
        padding = (0, 0) if given == "valid" else (spans[0] // 2, spans[1] // 2)
    else:
        padding = _flat(line, _pair(given, 0), 0)
    groups = _argument(node, 6, "groups", 1)
    settings = (stride, padding, dilation, groups)
    reader.append(node, Product(path_of(node), before, after, table, bias, node.name, *settings))
    reader.views[node.name] = target


def _max_pool(reader: Reader, node: Node, made: Tensor) -> None:
    _pool(reader, node, made, True, _argument(node, 4, "dilation", 1), 0)


def _average_pool(reader: Reader, node: Node, made: Tensor) -> None:
    inside = _argument(node, 5, "count_include_pad", True)
    divisor = _argument(node, 6, "divisor_override") or (0 if inside else -1)
    _pool(reader, node, made, False, 1, divisor)


def _pool(
    reader: Reader, node: Node, made: Tensor, maximum: bool, dilation: Any, divisor: int
) -> None:
    source, target = reader.view(node.args[0]), reader.new(node, made)  # type: ignore[arg-type]
    before, after = _image(source), _image(target)
    if before is None or after is None:
        raise refused(node, "it has more than two dimensions, or no batch")
    line = len(source.shape) == 3
    kernel = _flat(line, _pair(node.args[1], 1), 1)
    given = _argument(node, 2, "stride") or node.args[1]
    stride = _flat(line, _pair(given, 1), 1)
    padding = _flat(line, _pair(_argument(node, 3, "padding", 0), 0), 0)
    steps = _flat(line, _pair(dilation, 1), 1)
    settings = (maximum, kernel, stride, padding, steps, divisor)
    reader.append(node, Pool(path_of(node), before, after, *settings))
    reader.views[node.name] = target


def _adaptive_pool(reader: Reader, node: Node, made: Tensor) -> None:
    source, target = reader.view(node.args[0]), reader.new(node, made)  # type: ignore[arg-type]
    before, after = _image(source), _image(target)
    if before is None or after is None:
        raise refused(node, "it has more than two dimensions, or no batch")
    pairs = list(zip(before.shape[1:], after.shape[1:], strict=True))
    if any(size % into for size, into in pairs):
        raise refused(node, "its windows are of different sizes")
    kernel = (pairs[0][0] // pairs[0][1], pairs[1][0] // pairs[1][1])
    reader.append(node, Pool(path_of(node), before, after, False, kernel, kernel, (0, 0)))
    reader.views[node.name] = target


def _batch_norm(reader: Reader, node: Node, made: Any) -> None:
    """Append a batch norm as a scale and a shift, which are constant in evaluation."""
    weight, bias = (_optional(reader, node, each, "affine map") for each in node.args[1:3])
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


def _cat(reader: Reader, node: Node, made: Tensor) -> None:
    parts: Any = node.args[0]
    dim = int(_argument(node, 1, "dim", 0)) % made.ndim
    views = [(reader.env[each], reader.view(each)) for each in parts]
    target, at = reader.new(node, made), 0
    for value, view in views:
        if not value.numel():
            continue
        place = target.offset + at * target.strides[dim]
        part = View(target.array, tuple(value.shape), target.strides, place)
        reader.append(node, Copy(path_of(node), view, part))
        at += value.shape[dim]
    reader.views[node.name] = target


def _stack(reader: Reader, node: Node, made: Tensor) -> None:
    parts: Any = node.args[0]
    dim = int(_argument(node, 1, "dim", 0)) % made.ndim
    views = [reader.view(each) for each in parts]
    target = reader.new(node, made)
    strides = target.strides[:dim] + target.strides[dim + 1 :]
    for i, view in enumerate(views):
        part = View(target.array, view.shape, strides, i * target.strides[dim])
        reader.append(node, Copy(path_of(node), view, part))
    reader.views[node.name] = target


def _copy(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a copy in another order of memory, unless none is needed."""
    if reader.aliased(node, made):
        return
    given: Any = node.args[0]
    if reader.env[given].dtype != made.dtype:
        reader.pointwise(node, "_to_copy", made)
        return
    source, target = reader.view(given), reader.new(node, made)
    reader.append(node, Copy(path_of(node), source, target))
    reader.views[node.name] = target


def _moved(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a copy from places that constants choose: run on the numbers of the places."""
    given: Any = node.args[0]
    value: Tensor = reader.env[given]
    for each in node.all_input_nodes:
        if each is not given and each.name not in reader.constants:
            raise refused(node, "the places that it reads change from step to step")
    source = reader.view(given)
    places = torch.zeros(value.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(source.shape, source.strides, strict=True)):
        shape = [1] * value.ndim
        shape[dim] = size
        places += torch.arange(size).view(shape) * stride
    args, kwargs = pytree.tree_map_only(
        Node,
        lambda each: places + source.offset if each is given else reader.env[each],
        (node.args, node.kwargs),
    )
    chosen: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    table = reader.table(chosen.flatten().contiguous(), "places").array
    target = reader.new(node, made.contiguous())
    size = source.array.size
    flat = View(source.array, (size,), (1,))
    reader.append(node, Copy(path_of(node), flat, target, table))
    reader.views[node.name] = target


def _summed(reader: Reader, node: Node, made: Tensor, mean: bool) -> None:
    given: Any = node.args[0]
    value: Tensor = reader.env[given]
    source, target = reader.view(given), reader.new(node, made.contiguous())
    dims = _argument(node, 1, "dim")
    chosen = range(value.ndim) if not dims else [int(d) % value.ndim for d in dims]
    kept = [d for d in range(value.ndim) if d not in chosen]
    order = [*kept, *sorted(chosen)]
    view = View(
        source.array,
        tuple(source.shape[d] for d in order),
        tuple(source.strides[d] for d in order),
        source.offset,
    )
    shape = tuple(source.shape[d] for d in kept)
    strides = torch.empty(shape).stride()
    into = View(target.array, shape, tuple(strides))
    count = value.numel() // made.numel() if mean else 1
    reader.append(node, Sum(path_of(node), view, into, len(chosen), count))
    reader.views[node.name] = target


RULES: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool1d": _adaptive_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cat": _cat,
    "stack": _stack,
    "clone": _copy,
    "contiguous": _copy,
    "reshape": _copy,
    "_to_copy": _copy,
    "to": _copy,
    "gather": _moved,
    "index_select": _moved,
    "flip": _moved,
    "roll": _moved,
    "repeat": _moved,
    "sum": lambda reader, node, made: _summed(reader, node, made, False),
    "mean": lambda reader, node, made: _summed(reader, node, made, True),
}
