"""Read a model as a graph: which modules one step calls, in what order, and what joins them.

The model is run and watched: a hook sees each call of a layer, a torch function mode each operation
between them, in the second of two steps. A value is known by its tensor and by how often that was
written, so that a view of what was written since is refused.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from tracetorch.core.hooks import WEIGHT_HOOKS, forward_hooks, hooked_weights
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import global_hooks, is_compiled, pytree, version_of
from tracetorch.core.walk import MODULE_ATTRIBUTES, join_path, named_modules
from tracetorch.snn.module import keeps_states
from tracetorch.snn.passes import Pass, states_of
from tracetorch.snn.sequence_layer import SequenceLayer

IsLeaf: TypeAlias = Callable[[nn.Module], bool]
_NodeCall: TypeAlias = tuple[nn.Module | None, Any, Any, Any]  # with function, args, kwargs

# what forward may ask of a value without knowing the numbers in it
_OF_THE_SHAPE = {
    *("shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "len", "stride"),
    *("dtype", "device", "layout", "is_floating_point", "is_complex", "is_contiguous", "is_cuda"),
    *("is_meta", "is_sparse", "is_quantized", "requires_grad", "grad_fn", "grad", "is_leaf"),
    *("element_size", "storage_offset", "get_device", "is_tensor", "names", "_version", "hash"),
    *("is_inference", "is_nested", "data_ptr", "type", "repr", "format", "itemsize", "nbytes"),
}
# of containers that are compared from one moment to the next: dicts in lists in dicts
_DEPTH = 3


def label(path: str, module: nn.Module) -> str:
    """Return how messages name a module: ``fc1 (Linear)``."""
    kind: Any = type(module)
    if is_parametrized(module):  # a class that PyTorch has made
        kind = kind.__base__
    return f"{path or 'the model'} ({kind.__name__})"


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one node by default: a layer of ours, or one that comes with PyTorch."""
    ours = isinstance(module, SequenceLayer)
    return ours or (
        type(module).__module__.startswith("torch.nn.")
        and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    )


@dataclass(frozen=True, eq=False)
class Node:
    """Value of a model: an input, what a module returned, or what a function did."""

    index: int  # place among the nodes of the graph
    name: str  # unique among them, after the argument, the module's path, or the function
    path: str  # of the module; of a function that of the module whose forward calls it
    place: str  # how messages name it: fc1 (Linear), add() in the model's forward
    module: nn.Module | None  # what was called; None of an input and a function
    function: Callable[..., Any] | None  # what was called between modules, torch.relu say
    # positional arguments; a value of the graph in them, at any depth, is its node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]  # arguments by name
    shape: torch.Size | None  # of the value; None where it is no tensor, but a tuple of them, say

    @property
    def inputs(self) -> list[Node]:
        """The nodes that it is computed from, in order, each as often as it is an argument."""
        given = pytree.tree_leaves((self.args, self.kwargs))
        return [each for each in given if isinstance(each, Node)]

    @property
    def operation(self) -> str:
        """The name of the function, ``"add"`` also for ``+``; of a module or an input empty."""
        return "" if self.function is None else function_name(self.function)

    def __repr__(self) -> str:
        return f"Node({self.index}, {self.name!r}, inputs={[each.index for each in self.inputs]})"


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """Calls of one step of a model, in order."""

    nodes: tuple[Node, ...]  # inputs first, then calls in their order
    output: Any  # what the model returned, each tensor in it as its node
    read: frozenset[int]  # identities of parameters that forward computes with by itself

    @property
    def inputs(self) -> list[Node]:
        """The nodes of the arguments, in their order."""
        return [each for each in self.nodes if each.module is None and each.function is None]

    @cached_property
    def users(self) -> dict[Node, list[Node]]:
        """By node the nodes that it is an argument of."""
        found: dict[Node, list[Node]] = {each: [] for each in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node)
        return found

    def chain(self) -> list[Node]:
        """Return the calls of a model that is a chain of modules, in order."""
        before, *calls = self.nodes
        for node in calls:
            if node.module is None or node.args != (before,) or node.kwargs:
                raise ValueError(
                    f"{node.place} is not a module that is given what the module before it "
                    "returned, and nothing else: the model is no chain of modules."
                )
            before = node
        if self.output is not before:
            raise ValueError(f"the model does not return what {before.place} gives, its last call.")
        return calls

    def run(self, *inputs: Any, call: Call | None = None) -> Any:
        """Compute the output from inputs; ``call`` computes a node of values of any kind."""
        values: dict[Node, Any] = dict(zip(self.inputs, _cloned(inputs), strict=True))

        def valued(given: Any) -> Any:
            return pytree.tree_map_only(Node, values.__getitem__, given)

        for node in self.nodes[len(values) :]:
            values[node] = (call or compute)(node, valued(node.args), valued(node.kwargs))
        return valued(self.output)


Call: TypeAlias = Callable[[Node, Any, Any], Any]
"""Computes a node from the values of its arguments: ``node, args, kwargs -> value``."""


def compute(node: Node, args: Any, kwargs: Any) -> Any:
    """Compute a node as the model does."""
    function: Any = node.function if node.module is None else node.module
    return function(*args, **kwargs)


def read_model(
    model: nn.Module, *args: Any, is_leaf: IsLeaf = is_layer, strict: bool = True, **kwargs: Any
) -> ModelGraph:
    """Return the graph of one step from rest; ``strict``: refuse what a graph does not tell."""
    modules = dict(named_modules(model))
    if strict:
        for path, module in modules.items():
            _check_module(path, module)
    run = Pass(from_rest=True)  # in which the states live, and no layer's own are touched
    with restored(model, training=False), torch.inference_mode(False), torch.no_grad():
        run.call(model, *_cloned(args), **_cloned(kwargs))
        watch = run.call(_Watch, modules, is_leaf, strict)
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        args, kwargs = _cloned(args), _cloned(kwargs)
        given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for name, value in zip(_names(bound), given, strict=True):
            watch.add(value, watch.unused(name), "", f"input {name!r}")
        every = modules.items()
        with (
            forward_hooks(
                earliest=[(module, partial(watch.enter, path)) for path, module in every],
                after=[(module, partial(watch.leave, path)) for path, module in every],
            ),
            watch,
        ):
            output = run.call(model, *args, **kwargs)
        run.call(watch.find_changes, model)
    if strict and watch.changed:
        raise ValueError(
            f"the forward of {type(model).__name__} sets {', '.join(map(repr, watch.changed))}, "
            "which no graph does. Call zero_states(), and keep account, outside of forward."
        )
    output = watch.with_nodes(output, "what the model returns")
    returned = pytree.tree_leaves(output)
    if strict and not (returned and all(isinstance(each, Node) for each in returned)):
        raise ValueError(
            "the model must return a tensor that it has computed of its input, or a tuple or dict "
            "of such tensors."
        )
    return ModelGraph(tuple(watch.nodes), output, frozenset(watch.read))


def _names(arguments: dict[str, Any]) -> list[str]:
    """Name the tensors of all arguments: ``x``, or ``x_0`` where one holds several."""
    return [
        name if isinstance(given, Tensor) else f"{name}_{i}"
        for name, given in arguments.items()
        for i, each in enumerate(pytree.tree_leaves(given))
        if isinstance(each, Tensor)
    ]


def _cloned(values: Any) -> Any:
    # forward may write into what it is given
    return pytree.tree_map_only(Tensor, torch.clone, values)


def _check_module(path: str, module: nn.Module) -> None:
    """Raise where a call of a module is more than its class's forward, or remembers."""
    if keeps_states(module) and not isinstance(module, SequenceLayer):
        names = " and ".join(map(repr, module.active_states))
        raise ValueError(
            f"{label(path, module)} keeps a memory of its own, {names}, which is in no graph. Use "
            "snn.Recurrent, or a state of an snn.Neuron."
        )
    hooks: tuple[Any, ...] = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    hooked = global_hooks() or any(not isinstance(hook, WEIGHT_HOOKS) for hook in hooks)
    if hooked or "forward" in vars(module) or is_compiled(module):
        raise ValueError(
            f"{label(path, module)} has a hook or a forward of its own, or is compiled, and what "
            "that computes is in no graph. Remove it, or take what was compiled, _orig_mod."
        )


def check_plain_weights(model: nn.Module) -> None:
    """Raise where a hook of ``torch.nn.utils`` computes a weight: a norm, or pruning."""
    for path, module in named_modules(model):
        if hooked_weights(module):
            raise ValueError(
                f"{label(path, module)} has a hook that computes its weight: make it a plain one, "
                "with remove_weight_norm, remove_spectral_norm or prune.remove."
            )


class _Watch(TorchFunctionMode):
    """Make nodes of what one thread calls."""

    def __init__(self, modules: dict[str, nn.Module], is_leaf: IsLeaf, strict: bool) -> None:
        super().__init__()
        self.modules, self.is_leaf, self.strict = modules, is_leaf, strict
        self.thread = threading.get_ident()
        self.nodes: list[Node] = []
        self.read: set[int] = set()
        self.names: set[str] = {path for path, each in modules.items() if is_leaf(each)}
        # by identity the tensor, kept so that no other takes its place, its version and its node
        self.values: dict[int, tuple[Tensor, int | None, Node]] = {}
        self.inside: list[str] = []  # the modules that are looked into
        self.depth = 0  # modules entered in a leaf
        self.given: tuple[Any, dict[str, Any]] = (), {}
        self.attributes = {each: _attributes(each) for each in modules.values()}
        self.changed: dict[str, None] = {}

    def __exit__(self, *error: Any) -> None:
        if not self.depth:  # else a layer has failed
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that a module is called."""
        if threading.get_ident() != self.thread:
            return
        if self.depth:
            self.depth += 1
        elif self.is_leaf(module):
            self.given = self.with_nodes((args, kwargs), label(path, module))
            self.find_changes(module)
            self.depth = 1
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # a layer runs unwatched
        else:
            self.inside.append(path)

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Add the node of a module that was called."""
        if threading.get_ident() != self.thread:
            return output
        if not self.depth:
            self.inside.pop()
            return output
        self.depth -= 1
        if self.depth:
            return output
        # what a layer changes in its own call is its own affair
        self.attributes |= {each: _attributes(each) for _, each in named_modules(module)}
        if isinstance(output, Tensor) and self.node_of(output) is not None:
            # what it was given, as Identity returns it, is not known by two names
            output = torch.ops.aten.alias(output)
        again = any(each.module is module for each in self.nodes)
        name, (given, named) = self.unused(path) if again else path, self.given
        self.add(output, name, path, label(path, module), (module, None, given, named))
        super().__enter__()  # type: ignore[no-untyped-call]
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, owner = function_name(func), self.inside[-1] if self.inside else ""
        whose = f"forward of {label(owner, self.modules[owner])}" if owner else "model's forward"
        place = f"{name}() in the {whose}"
        given = pytree.tree_leaves((args, kwargs))
        known = [each for each in given if id(each) in self.values]
        if not known and name not in _OF_THE_SHAPE:
            self.read |= {id(each) for each in given if isinstance(each, nn.Parameter)}
        if not known or name in _OF_THE_SHAPE:
            return func(*args, **kwargs)
        args_with_nodes, kwargs_with_nodes = self.with_nodes((args, kwargs), place)
        func = setitem if func is Tensor.__setitem__ else func
        value = func(*args, **kwargs)
        if any(isinstance(each, Tensor) for each in pytree.tree_leaves(value)):
            before = self.node_of(known[0])
            zero = len(given) == 2 and type(given[1]) is int and given[1] == 0
            if before is not None and zero and name == "add":  # as sum() begins
                self.values[id(value)] = value, version_of(value), before
            # unless it is what was given, as contiguous() may return
            if self.node_of(value) is None:
                name = self.unused(name.strip("_"))
                call = None, func, args_with_nodes, kwargs_with_nodes
                self.add(value, name, owner, place, call)
        elif self.strict:
            raise ValueError(
                f"{place} reads numbers of a value: what forward does may depend on "
                "data then, and no graph tells it. Call modules, and add what they give."
            )
        return value

    def add(
        self, value: Any, name: str, path: str, place: str, call: _NodeCall = (None, None, (), {})
    ) -> None:
        """Add a node of a call, and one for each part of a value that is no tensor."""
        shape = value.shape if isinstance(value, Tensor) else None
        node = Node(len(self.nodes), name, path, place, *call, shape)
        self.nodes.append(node)
        if isinstance(value, Tensor):
            self.values[id(value)] = value, version_of(value), node
            return
        for i, each in enumerate(pytree.tree_leaves(value)):
            if isinstance(each, Tensor):
                name_of_part = self.unused(f"{name}_{i}")
                self.add(each, name_of_part, path, place, (None, item, (node, i), {}))

    def unused(self, name: str) -> str:
        """Return a name that no node has."""
        name = unused(name, self.names)
        self.names.add(name)
        return name

    def node_of(self, value: Any) -> Node | None:
        """Return the node of a value, if it was not written since."""
        _, version, node = self.values.get(id(value), (None, -1, None))
        return node if node is not None and version == version_of(value) else None

    def with_nodes(self, values: Any, place: str) -> Any:
        """Return arguments with the node of each value in its place."""

        def node(value: Tensor) -> Any:
            if id(value) in self.values:
                found = self.node_of(value)
                if self.strict and found is None:
                    raise ValueError(
                        f"{place} is given the value of {self.values[id(value)][2].place} from "
                        "before it was written in place. Write y = y + x instead of y += x."
                    )
                return found or self.values[id(value)][2]
            own = [path for path, each in self.tensors() if each is value] if self.strict else []
            if own:
                raise ValueError(
                    f"{place} is given {own[0]!r} by itself, and parameters and states belong to a "
                    "layer. Use nn.Linear, say."
                )
            return value

        return pytree.tree_map_only(Tensor, node, values)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Yield parameters, buffers and states of all modules."""
        for path, module in self.modules.items():
            of_states = states_of(module) if keeps_states(module) else {}
            for name, each in {**module._parameters, **module._buffers, **of_states}.items():
                if each is not None:
                    yield join_path(path, name), each

    def find_changes(self, module: nn.Module) -> None:
        """Note what has changed in a module, and in all inside of it, since it was last called."""
        paths = {each: path for path, each in self.modules.items()}
        for _, each in named_modules(module):
            before, now = self.attributes.get(each, {}), _attributes(each)
            for name in dict.fromkeys([*before, *now]):
                pairs = before.get(name, []), now.get(name, [])
                if len(pairs[0]) != len(pairs[1]) or any(
                    one is not other or version != later
                    for (one, version), (other, later) in zip(*pairs, strict=True)
                ):
                    self.changed.setdefault(join_path(paths[each], name))


def _attributes(module: nn.Module) -> dict[str, list[tuple[Any, int | None]]]:
    """Return all objects that each attribute holds, tensors with their versions."""
    of_states = states_of(module) if keeps_states(module) else {}
    attributes = {**vars(module), **of_states, **module._parameters, **module._buffers}
    return {
        name: list(_objects(value))
        for name, value in attributes.items()
        if name not in MODULE_ATTRIBUTES
    }


def _objects(value: Any, depth: int = _DEPTH) -> Iterator[tuple[Any, int | None]]:
    yield value, version_of(value) if isinstance(value, Tensor) else None
    if depth and isinstance(value, dict | list | tuple | set):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _objects(each, depth - 1)


def function_name(function: Any) -> str:
    """Return a function's name: ``"add"`` of ``torch.add`` and ``+``, ``"add_"`` in place."""
    name = str(getattr(function, "__name__", function))
    if name == "__get__":  # of an attribute, x.shape
        name = str(function.__self__.__name__)
    return name.strip("_") if name.startswith("__") else name


def item(value: Any, number: int) -> Any:
    """Return one of the values of a tuple, or of any container."""
    return pytree.tree_leaves(value)[number]


def setitem(value: Tensor, index: Any, part: Any) -> Tensor:
    """Write a part of a tensor, and return the tensor."""
    value[index] = part
    return value


def unused(wanted: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: the one that is wanted, or with a number behind it."""
    name, i = wanted, 1
    while name in taken:
        name, i = f"{wanted}_{i}", i + 1
    return name
