"""From a PyTorch model to a graph of NIR: the modules it calls, and what flows between them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tracetorch.core.snapshot import ModelSnapshot
from tracetorch.nir.convert import converted
from tracetorch.nir.graph import Graph, Node, Shape, membrane
from tracetorch.nir.model import NIRModel
from tracetorch.nir.plain import LINEAR, PASSING, flatten, folded, normalising
from tracetorch.nir.writing import Writing
from tracetorch.snn import Neuron, TTModule
from tracetorch.snn.states import named_neurons

_ADDING = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (operator.iadd, "add_")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# hooks that compute a module's own weight anew, and nothing else
_WEIGHT_HOOKS = (prune.BasePruningMethod, SpectralNorm, WeightNorm)


def traced(model: nn.Module, inputs: tuple[Tensor, ...], how: Writing) -> Graph:
    """The graph of ``model`` as it runs on ``inputs``; its states are neither read nor changed.

    Args:
        model: any module whose ``forward`` calls modules and adds up what they give.
        inputs: one time step, with a batch.
        how: what is to be written.

    Raises:
        TypeError: ``forward`` cannot be followed.
        ValueError: a module or an operation has no counterpart; its path is named.
    """
    _check_own(model)
    if isinstance(model, NIRModel):
        graph = converted(model, (), "the model", how)
        return graph if isinstance(graph, Graph) else Graph({}, [])
    root = model
    if _Tracer().is_leaf_module(model, ""):
        root = nn.Sequential(model)
    program = _followed(model, root)
    _check_parameters(program)
    _check_called_once(program)
    _check_in_place(program)
    try:
        # copies, for forward may write into what it is given
        _Shapes(program).run(*(x.clone() for x in inputs))
    except (IndexError, RuntimeError, TypeError, ValueError) as wrong:
        told = ", ".join(f"{list(x.shape)} {x.dtype}" for x in inputs)
        raise ValueError(
            f"{type(model).__name__} cannot run on a sample of {told}, the batch first: "
            f"{str(wrong).partition(chr(10))[0]}. Give one that the model takes."
        ) from wrong
    return _Writer(program, how).graph()


def _followed(model: nn.Module, root: nn.Module) -> fx.GraphModule:
    """What ``forward`` does; following it runs it, and what it changed is put back."""
    before = ModelSnapshot(model)
    neurons = list(named_neurons(model))
    live = torch.zeros(())  # for a forward that asks whether there is a state
    try:
        for _, layer in neurons:
            for name in layer.active_states:
                setattr(layer, name, live)
        try:
            program = fx.GraphModule(root, _Tracer().trace(root))
        except Exception as wrong:  # whatever the user's own forward makes of fx's stand-ins
            raise TypeError(
                f"the forward of {type(model).__name__} cannot be followed by torch.fx: {wrong}. "
                "NIR has no branches that depend on data; call modules, and add what they give."
            ) from wrong
        changed = [
            f"{path}.{name}" if path else name
            for path, layer in neurons
            for name in layer.active_states
            if getattr(layer, name) is not live
        ]
        # fx's own, for tensors made in forward
        changed += [n for n in before.changes() if not n.startswith("_tensor_constant")]
    finally:
        before.restore()
    if changed:
        raise ValueError(
            f"the forward of {type(model).__name__} sets {', '.join(map(repr, changed))}, and a "
            "graph only what its neurons do. Call zero_states() and keep account outside of "
            "forward."
        )
    return program


def _check_own(model: nn.Module) -> None:
    """Raise where a module computes more than its class says."""
    for path, module in model.named_modules():
        told = _told(path, module) if path else f"the model, {type(module).__name__},"
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        other = [hook for hook in hooks if not isinstance(hook, _WEIGHT_HOOKS)]
        if other:
            raise ValueError(
                f"{told} has the hook {other[0]!r}, which may change what it computes; a graph has "
                "no hooks. Remove it with its handle's remove()."
            )
        if "forward" in vars(module):
            way = (
                "Give what torch.compile was given, model._orig_mod."
                if "_orig_mod" in module._modules
                else "Write it as a module of its own."
            )
            raise ValueError(f"{told} has a forward put in the place of its class's. {way}")


class _Value(fx.Proxy):
    """A stand-in that tells ``y += x``, which changes every name of ``y``, from ``y = y + x``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for a value."""
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Neurons, graphs and what comes with PyTorch are nodes; all else is looked into."""
        ours = type(m).__module__.startswith("tracetorch.nir.")
        if ours or isinstance(m, Neuron):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


class _Shapes(fx.Interpreter):
    """Runs the program once, notes the shape of every value, and leaves all states alone."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, (Neuron, *PASSING, *_NORMS)):
            return args[0]
        if isinstance(module, NIRModel):
            shapes = [module.wiring.shapes[name] for name in module.wiring.outputs]
            return args[0].new_zeros(len(args[0]), *shapes[0])
        return super().call_module(target, args, kwargs)


def _check_parameters(program: fx.GraphModule) -> None:
    for node in program.graph.nodes:
        if node.op == "get_attr":
            raise ValueError(
                f"the model's forward uses {node.target!r} by itself; in NIR parameters and states "
                "belong to a layer. Use nn.Linear, say."
            )


def _check_called_once(program: fx.GraphModule) -> None:
    seen: set[int] = set()
    for node in program.graph.nodes:
        if node.op != "call_module":
            continue
        module = program.get_submodule(str(node.target))
        if isinstance(module, TTModule):  # the leaves among them all remember
            if id(module) in seen:
                raise ValueError(
                    f"{_told(str(node.target), module)} is called twice in one step; as two nodes "
                    "it would have two memories."
                )
            seen.add(id(module))


def _check_in_place(program: fx.GraphModule) -> None:
    """Raise where a sum is written into a value that something else reads afterwards."""
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        if node.target not in _IN_PLACE:
            continue
        written = node.args[0]
        while isinstance(written, fx.Node):
            if any(order[user] > order[node] for user in written.users):
                name = node.target if isinstance(node.target, str) else "+="
                raise ValueError(
                    f"{name} in the model's forward writes into {written.name!r}, which is used "
                    "again afterwards; edges carry what a node gave. Write y = y + x."
                )
            written = written.args[0] if _passes_memory(program, written) else None


def _passes_memory(program: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value may be the very memory that went in."""
    if node.op == "call_module":
        module = program.get_submodule(str(node.target))
        return isinstance(module, (*PASSING, nn.Flatten))
    return node.target in (*_IN_PLACE, torch.flatten, "flatten") and bool(node.args)


class _Writer:
    """Turns the program's steps into nodes, and what they pass on into edges."""

    def __init__(self, program: fx.GraphModule, how: Writing) -> None:
        self.program = program
        self.how = how
        self.nodes: dict[str, Node | Graph] = {}
        self.edges: list[tuple[str, str]] = []
        self.kept: set[str] = set()  # names that the outputs will need
        # what a value of the program is the sum of
        self.sources: dict[fx.Node, list[str]] = {}

    def graph(self) -> Graph:
        """All of it."""
        self.kept = set(self._outputs())
        for node in self.program.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        return Graph(self.nodes, self.edges)

    def _placeholder(self, node: fx.Node) -> None:
        if node.users or "shape" in node.meta:
            self._put(
                node,
                "input" if self._alone() else str(node.target),
                Node("Input", settings={"shape": self._shape(node)}),
                [],
            )

    def _alone(self) -> bool:
        return [node.op for node in self.program.graph.nodes].count("placeholder") == 1

    def _call_module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self.program.get_submodule(path)
        told = _told(path, module)
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise ValueError(f"{told} is called with more than one tensor; a node has one input.")
        before = node.args[0]
        if isinstance(module, PASSING):
            self.sources[node] = self._of(before, told)
            return
        if isinstance(module, _NORMS) and self._fold(node, before, module, told):
            return
        made = converted(module, self._shape(before), told, self.how)
        self._put(node, path, made, self._of(before, told))

    def _fold(self, node: fx.Node, before: fx.Node, module: nn.Module, told: str) -> bool:
        """A batch norm goes into the linear node before it, if no one else listens to that."""
        came = self._of(before, told)
        name = came[0]
        linear = self.nodes[name]
        alone = len(before.users) == 1 and before.op == "call_module" and len(came) == 1
        own = before.op == "call_module" and _named(str(before.target)) == name
        if not (alone and own and isinstance(linear, Node) and linear.kind in LINEAR):
            return False
        self.nodes[name] = folded(linear, *normalising(module, told))
        self.sources[node] = [name]
        return True

    def _call_function(self, node: fx.Node) -> None:
        self._call(node, node.target in _ADDING, node.target is torch.flatten)

    def _call_method(self, node: fx.Node) -> None:
        self._call(node, node.target in ("add", "add_"), node.target == "flatten")

    def _call(self, node: fx.Node, adds: bool, flattens: bool) -> None:
        name = node.target if isinstance(node.target, str) else node.target.__name__
        told = f"{name}() in the model's forward"
        tensors = [a for a in node.args if isinstance(a, fx.Node)]
        if adds and len(node.args) == 2 and len(tensors) == 2 and not node.kwargs:
            shapes = [self._shape(tensor) for tensor in tensors]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{told} broadcasts {shapes[1]} over {shapes[0]}; edges do not.")
            self.sources[node] = [s for tensor in tensors for s in self._of(tensor, told)]
        elif flattens and len(tensors) == 1:
            dims = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            start, end = dims.get("start_dim", 0), dims.get("end_dim", -1)
            if not isinstance(start, int) or not isinstance(end, int):
                raise ValueError(f"{told} has dimensions that depend on data.")
            made = flatten(start, end, self._shape(tensors[0]), told)
            self._put(node, node.name, made, self._of(tensors[0], told))
        else:
            raise ValueError(
                f"{told} has no counterpart in NIR: between modules, values can be added and "
                "flattened. Write it as a module that has one, or leave it out."
            )

    def _output(self, node: fx.Node) -> None:
        outputs = self._outputs()
        self.kept = set()
        for name, value in outputs.items():
            made = Node("Output", settings={"shape": self._shape(value)})
            self._link(self._free(name), made, self._of(value, "the output"))

    def _outputs(self) -> dict[str, fx.Node]:
        """What the model returns, by name."""
        given: Any = self.program.graph.output_node().args[0]
        if isinstance(given, fx.Node):
            given = {"output": given}
        elif isinstance(given, (tuple, list)):
            given = {f"output_{i}": each for i, each in enumerate(given)}
        if not isinstance(given, dict) or not all(isinstance(v, fx.Node) for v in given.values()):
            raise ValueError("the model must return a tensor, or a tuple or dict of tensors.")
        return {str(name): value for name, value in given.items()}

    # Nodes and edges

    def _put(self, value: fx.Node, path: str, made: Node | Graph, sources: list[str]) -> None:
        name = self._free(_named(path))
        self._link(name, made, sources)
        self.sources[value] = [name]

    def _link(self, name: str, made: Node | Graph, sources: list[str]) -> None:
        self.nodes[name] = made
        for source in sources:
            if (source, name) in self.edges:  # x + x: an edge is there or not
                copy = self._free(f"{name}_again")
                shape = self._leaving(source)
                self.nodes[copy] = membrane("Scale", shape, scale=1.0)
                self.edges.append((source, copy))
                source = copy
            self.edges.append((source, name))

    def _leaving(self, name: str) -> Shape:
        value = next(v for v, sources in self.sources.items() if sources == [name])
        return self._shape(value)

    def _free(self, name: str) -> str:
        free, i = name, 1
        while free in self.nodes or free in self.kept:
            free, i = f"{name}_{i}", i + 1
        return free

    def _of(self, value: fx.Node, told: str) -> list[str]:
        if value not in self.sources:
            raise ValueError(f"{told} gets {value.name!r}, which is no output of a module.")
        return self.sources[value]

    def _shape(self, value: fx.Node) -> Shape:
        shape: Shape = value.meta["shape"]
        if len(shape) < 2:
            raise ValueError(
                f"{value.name!r} has shape {list(shape)}; a sample needs a dimension behind the "
                "batch."
            )
        return shape[1:]


def _told(path: str, module: nn.Module) -> str:
    """How messages call a module: a short one as it prints, a large one by its type."""
    spelled = repr(module)
    return f"layer {path!r}, {type(module).__name__ if chr(10) in spelled else spelled},"


def _named(path: str) -> str:
    """A node's name: peers take ``.`` for a part of a name, or refuse it."""
    return path.replace(".", "_")
