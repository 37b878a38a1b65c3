"""``Tape``: record what PyTorch computes in a block, autograd's backward pass too, as a graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import TorchDispatchMode, pytree
from tracetorch.core.walk import named_modules
from tracetorch.fuse.ir.decompose import decomposition
from tracetorch.fuse.ir.lower import has_rule

# keys of a node's ``meta``
VALUE = "value"  # what it computed on the tape
SIMPLER = "simpler"  # whether it is a part of an operation, which may round otherwise as a whole
_Place: TypeAlias = tuple[object, ...]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record operations on tensors, each known by its place in memory, until it is left.

    A value is one by the memory that it lies in, for what autograd has saved comes back as another
    object. What no operation has made is a constant. An operation that pointwise stages have no
    rule for is recorded as the simpler ones that it is made of.

    Args:
        inputs: tensors without shared memory, by name; placeholders of the graph.
        known: operations, by their names, that are recorded as they are.
    """

    def __init__(self, inputs: Mapping[str, Tensor], known: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known
        self.graph = Graph()
        self.root = nn.Module()
        self._kept: list[Any] = []  # memory that is never used again while the tape runs
        self._nodes: dict[_Place, Node] = {}
        self._made: dict[tuple[Any, str], Node] = {}  # by operation and arguments
        self._stack: list[nn.Module] = []
        self._simpler = False
        self._stale: set[int] = set()  # memory that was written: only the writer's view is known
        for number, value in enumerate(inputs.values()):
            self._note(self.graph.placeholder(f"input_{number}"), value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if not func._schema.is_mutable and not has_rule(name) and name not in self._known:
            simpler = decomposition(func)
            if simpler is not None and not _is_view(func):
                outer, self._simpler = self._simpler, True
                try:
                    with self:
                        return simpler(*args, **kwargs)
                finally:
                    self._simpler = outer
        # before the operation, which may write into what it reads
        spelled = pytree.tree_map_only(Tensor, self.node, (args, kwargs))
        made = func(*args, **kwargs)
        self._kept.append((args, kwargs, made))
        if func._schema.is_mutable:
            self._written(func, name, spelled, made)
        elif isinstance(made, Tensor):
            if _place(made) not in self._nodes:
                self._note(self._computed(func, spelled), made)
        elif any(isinstance(each, Tensor) for each in pytree.tree_leaves(made)):
            whole = self.graph.call_function(func, *spelled)
            whole.meta[VALUE] = made
            for place, part in enumerate(made):
                if isinstance(part, Tensor):
                    self._note(self.graph.call_function(operator.getitem, (whole, place)), part)
        return made

    def _computed(self, func: Any, spelled: Any) -> Node:
        """Return the node of an operation: the derivatives of a step compute it once more."""
        key = func, repr(spelled)
        if key not in self._made or torch.Tag.nondeterministic_seeded in func.tags:
            self._made[key] = self.graph.call_function(func, *spelled)
        return self._made[key]

    def _written(self, func: Any, name: str, spelled: Any, made: Any) -> None:
        """Record a write in place as a new value, which is at that place from here on."""
        plain = getattr(torch.ops.aten, name.removesuffix("_"), None)
        new = getattr(plain, func._overloadname, None)
        if new is None or not name.endswith("_") or not isinstance(made, Tensor):
            raise ValueError(
                f"a step of the learner calls {func}, which writes in place where C has no rule. "
                "Freeze what it belongs to, or learn on the host."
            )
        memory = made.untyped_storage().data_ptr()
        self._nodes = {place: n for place, n in self._nodes.items() if place[0] != memory}
        self._stale.add(memory)
        self._note(self.graph.call_function(new, *spelled), made)

    def within(self, model: nn.Module) -> AbstractContextManager[None]:
        """Note of each operation in a block the module of a model that was called for it."""

        def enter(module: Any, args: Any, kwargs: Any) -> None:
            self._stack.append(module)

        def leave(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._stack.pop()

        self._paths = {id(module): path for path, module in reversed(named_modules(model))}
        every = [module for _, module in named_modules(model)]
        return forward_hooks(
            earliest=[(module, enter) for module in every],
            after=[(module, leave) for module in every],
        )

    def _note(self, node: Node, value: Tensor) -> None:
        if self._stack:
            module = self._stack[-1]
            stack = {"": (self._paths[id(module)], type(module).__name__)}
            node.meta.setdefault("nn_module_stack", stack)
        node.meta[VALUE] = value
        node.meta.setdefault(SIMPLER, self._simpler)
        self._kept.append(value)
        self._nodes[_place(value)] = node

    def node(self, value: Tensor) -> Node:
        """Return the node of a value; of one that nothing has made, a constant."""
        place = _place(value)
        if place not in self._nodes:
            memory = place[0]
            if value.numel() and any(other[0] == memory for other in self._nodes):
                wide = next(n for other, n in self._nodes.items() if other[0] == memory)
                if memory in self._stale or wide.op != "get_attr":
                    raise ValueError(
                        f"a step of the learner reads a tensor of shape {list(value.shape)} in "
                        "memory that was written in place, or made where operations are not seen."
                    )
            name = f"constant_{len(self._kept)}"
            self.root.register_buffer(name, value.detach())
            self._note(self.graph.create_node("get_attr", name), value)
        return self._nodes[place]


def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None for value in func._schema.returns)


def _place(value: Tensor) -> _Place:
    memory = value.untyped_storage().data_ptr() or id(value)
    return memory, value.storage_offset(), value.shape, value.stride(), value.dtype
