"""``Reader``: read an exported program as stages, by running it on a sample at a batch of one.

Where a value of the run shares memory with another, it is a view of it; what depends on constants
alone is a table. Pointwise operations in a row over the same places become one graph, by the rules
with which a step is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.stages import Array, Pointwise, Role, Stage, View
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable, Value
from tracetorch.fuse.ir.lower import lower

# Appends what an operation does: reader, node, result.
Rule: TypeAlias = "Callable[[Reader, Node, Any], None]"

# Of their argument they read the shape alone, which does not change.
_FILLS = frozenset({"new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like"})
# Their results are parts of what they are given.
_PARTS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split", "unbind"})
_SILENT = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range"})
_IGNORED = frozenset({"dtype", "device", "layout", "pin_memory", "memory_format"})
FLOATS = (torch.float32, torch.float64)


@dataclass
class _Group:
    """Pointwise operations over the same places, while they are collected."""

    path: str
    shape: tuple[int, ...]
    builder: Builder = field(default_factory=Builder)
    reads: dict[str, View] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)  # of each node
    nodes: dict[str, View] = field(default_factory=dict)  # where its values go, if anywhere
    arrays: dict[Array, str] = field(default_factory=dict)


class Reader(Interpreter):
    """Run a program and read its operations as stages."""

    def __init__(
        self, module: GraphModule, constants: Iterable[str], rules: Mapping[str, Rule]
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        # an error of ours is whole
        self.extra_traceback = False
        self.rules = rules
        self.views: dict[str, View] = {}  # of every value that is not constant, by node
        self.constants = set(constants)
        self.stages: list[Stage] = []
        self.group: _Group | None = None
        self.tables: dict[tuple[Any, ...], Array] = {}
        self.dtypes: set[torch.dtype] = set()

    # Values

    def run_node(self, n: Node) -> Any:
        """Run an operation, and read it unless it depends on constants alone."""
        made: Any = super().run_node(n)
        if n.op in ("output", "placeholder"):
            return made
        args = pytree.tree_leaves((n.args, n.kwargs))
        given = [each for each in args if isinstance(each, Node)]
        given = [each for each in given if isinstance(self.env[each], (Tensor, tuple, list))]
        name = operation_of(n)
        if name in _FILLS or all(each.name in self.constants for each in given):
            self.constants.add(n.name)
        elif name not in _SILENT and isinstance(made, (Tensor, tuple)):
            self.read(n, name, made)
        return made

    def view(self, node: Node) -> View:
        """Return where a value is; a table for a constant."""
        return self.views[node.name] if node.name in self.views else self.table(self.env[node])

    def table(self, value: Tensor, label: str = "") -> View:
        """Return a view of a table that holds a constant, without what is repeated in it."""
        index = tuple(
            slice(0, 1) if stride == 0 or size == 1 else slice(None)
            for size, stride in zip(value.shape, value.stride(), strict=True)
        )
        dense = value[index].detach().contiguous().clone()
        key = (dense.dtype, tuple(dense.shape), dense.numpy().tobytes())
        if key not in self.tables:
            array = Array(Role.TABLE, label, dense.numel(), dense.dtype is torch.bool, dense)
            self.tables[key] = array
        strides = tuple(
            0 if size == 1 else stride
            for size, stride in zip(dense.shape, dense.stride(), strict=True)
        )
        return View(self.tables[key], tuple(value.shape), strides)

    def new(self, node: Node, value: Tensor) -> View:
        """Return a view of new memory for a value."""
        self.check_dtype(node, value)
        array = Array(Role.WORK, path_of(node), value.numel(), value.dtype is torch.bool)
        view = View(array, tuple(value.shape), tuple(value.stride()))
        if sorted(view.places().flatten().tolist()) != list(range(value.numel())):
            view = replace(view, strides=tuple(value.contiguous().stride()))
        return view

    def check_dtype(self, node: Node, value: Tensor) -> None:
        """Raise where values are neither floats nor truth values."""
        if value.dtype in FLOATS:
            self.dtypes.add(value.dtype)
        elif value.dtype is not torch.bool:
            raise refused(node, f"it computes values of {value.dtype}")
        if not value.numel():
            raise refused(node, "it has no values")

    # Operations

    def read(self, node: Node, name: str, made: Any) -> None:
        if name in self.rules:
            self.rules[name](self, node, made)
        elif name == "getitem":
            self.item(node, made)
        elif name in _PARTS:
            pass  # each part is a view of the whole, once it is taken
        elif not isinstance(made, Tensor):
            raise refused(node)
        elif not self.aliased(node, made):
            self.pointwise(node, name, made)

    def item(self, node: Node, made: Any) -> None:
        """Read one result of an operation that has several."""
        (whole,) = node.all_input_nodes
        if operation_of(whole) in _PARTS:
            if not self.aliased(node, made, whole.all_input_nodes):
                raise refused(whole)
            return
        if node.args[1]:
            raise refused(node, "only the first result of an operation is known")
        if whole.name not in self.views:
            raise refused(whole)
        self.views[node.name] = self.views[whole.name]

    def aliased(self, node: Node, made: Tensor, of: Sequence[Node] | None = None) -> bool:
        """Record a value that lies in the memory of another, and say so."""
        for each in node.all_input_nodes if of is None else of:
            value = self.env[each]
            if each.name not in self.views or not isinstance(value, Tensor):
                continue
            copied = operation_of(node) in ("clone", "_to_copy", "alias", "detach")
            if copied and value.dtype == made.dtype and value.stride() == made.stride():
                self.views[node.name] = self.views[each.name]
                return True
            if value.untyped_storage().data_ptr() != made.untyped_storage().data_ptr():
                continue
            source = self.views[each.name]
            if not source.same_places(
                View(source.array, tuple(value.shape), value.stride(), source.offset)
            ):
                raise refused(node, "it looks at values in an order that C does not have")
            offset = made.storage_offset() - value.storage_offset()
            shape, strides = tuple(made.shape), tuple(made.stride())
            self.views[node.name] = View(source.array, shape, strides, source.offset + int(offset))
            return True
        return False

    def pointwise(self, node: Node, name: str, made: Tensor) -> None:

        def emit(operand: Callable[[Any], Value], builder: Builder) -> Value:
            # the dtype that "to" takes is that of the value
            given = node.args[:1] if name == "_to_copy" else node.args
            args, kwargs = pytree.tree_map_only(Node, operand, (given, node.kwargs))
            kwargs = {k: v for k, v in kwargs.items() if k not in _IGNORED and v is not None}
            return lower(builder, name, made.dtype is torch.bool, args, kwargs)

        self.emitted(node, made, emit)

    def emitted(
        self, node: Node, made: Tensor, emit: Callable[[Callable[[Any], Value], Builder], Value]
    ) -> None:
        """Append what ``emit`` writes to the open group, or to a new one."""
        target = self.new(node, made)
        shape = target.shape
        try:
            # a value that must be read from memory closes the group that computes it
            for each in node.all_input_nodes:
                self.operand(node, each, shape)
            group = self.open(node, shape)
            value = emit(lambda each: self.operand(node, each, shape), group.builder)
        except Unfusable as reason:
            plain = str(reason) == operation_of(node)
            text = "" if plain else f"there is no {reason} in C or JavaScript"
            raise refused(node, text) from None
        group.values[node.name] = value
        group.nodes[node.name] = target.squeezed()
        group.arrays[target.array] = node.name
        self.views[node.name] = target

    def open(self, node: Node, shape: tuple[int, ...]) -> _Group:
        """Return the open group, or a new one where it has other places or another module."""
        if self.group is None or self.group.shape != places_of(shape):
            self.close()
            self.group = _Group(path_of(node), places_of(shape))
        return self.group

    def operand(self, node: Node, each: Node | Tensor, shape: tuple[int, ...]) -> Value:
        """Return a value in the open group: computed there, a number, or read from memory."""
        value = self.env[each] if isinstance(each, Node) else each
        if not isinstance(value, Tensor):
            if isinstance(value, (bool, int, float)):
                return value
            raise refused(node, f"it needs a {type(value).__name__}")
        if isinstance(each, Tensor) or each.name in self.constants:
            first = value.flatten()[:1]
            # bit by bit: zeros of both signs are equal
            if bool((value == first).all()) and not bool(
                value.signbit().any() & ~value.signbit().all()
            ):
                number = first.item()
                return number if isinstance(number, bool) else float(number)
            if value.dtype not in (*FLOATS, torch.bool):
                value = value.to(torch.get_default_dtype())
            view = self.table(value)
        else:
            view = self.views[each.name]
        group = self.open(node, shape)
        inner = group.arrays.get(view.array)
        if inner is not None:
            if view.broadcast(shape).same_places(group.nodes[inner]):
                return group.values[inner]
            self.close()
            group = self.open(node, shape)
        view = view.broadcast(shape).squeezed()
        for name, other in group.reads.items():
            if other == view:
                return name
        name = f"r{len(group.reads)}"
        group.reads[name] = view
        if view.array.boolean:
            group.builder.booleans.add(name)
        return name

    def close(self) -> None:
        """Append the open group as a stage; what is read later has been given memory."""
        group, self.group = self.group, None
        if group is None:
            return
        outputs = {f"w{i}": group.values[name] for i, name in enumerate(group.nodes)}
        writes = {f"w{i}": view for i, view in enumerate(group.nodes.values())}
        graph = Graph(tuple(group.builder.lines), outputs)
        self.stages.append(Pointwise(group.path, group.shape, dict(group.reads), graph, writes))

    def append(self, node: Node, stage: Stage, target: View) -> None:
        """Append a stage that is no group; the value of its operation is ``target``."""
        self.close()
        self.stages.append(stage)
        self.views[node.name] = target


def places_of(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape without dimensions of size 1, along which a loop does not move."""
    return tuple(size for size in shape if size != 1)


def operation_of(node: Node) -> str:
    """Return the name of an operation, without namespace if it is PyTorch's own."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    name = str(schema.name).removeprefix("aten::")
    return f"bitwise_{name.strip('_')}" if name in ("__and__", "__or__", "__xor__") else name


def path_of(node: Node) -> str:
    """Return the path of the module that an operation belongs to, and its class."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    inner = path.partition("@")[0].removeprefix("model").removeprefix(".")
    name = inner or "the model"
    return f"{name} ({kind.rpartition('.')[2]})" if kind else name


def refused(node: Node, reason: str = "") -> ValueError:
    """Return the error of an operation that has no C."""
    name = operation_of(node)
    text = f"{reason} ({name})" if reason else f"there is no {name} in C or JavaScript"
    return ValueError(
        f"{path_of(node)} cannot be written in C: {text}. There "
        "is C for linear layers, convolutions and pooling in one or two dimensions, batch norm in "
        "evaluation, pointwise operations, views, copies, sums, and every neuron whose step is "
        "pointwise. tt.export.onnx writes any model."
    )
