"""Convert a model to a graph: the modules it calls, and what flows between them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracetorch.nir.graph import LINEAR, Node, NodeGraph, Shape, boundary, elementwise
from tracetorch.nir.model import NIRModel
from tracetorch.nir.module_checks import check_modules
from tracetorch.nir.module_to_node import PASSING, flatten_node, model_graph, node_of
from tracetorch.nir.options import WriteOptions
from tracetorch.nir.weight_folding import fold_norm, norm_arrays
from tracetorch.snn import SequenceLayer, TTModule
from tracetorch.snn.forward_tracing import IN_PLACE, trace_forward

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ADDING = (operator.add, torch.add, "add", *IN_PLACE)
_FLATTENING = (torch.flatten, "flatten")
_ADVICE = "NIR has no branches that depend on data; call modules, and add what they give."


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...], options: WriteOptions) -> NodeGraph:
    """Convert one time step of ``model``, for inputs like these, without touching states."""
    check_modules(model)
    if isinstance(model, NIRModel):
        return model_graph(model, options)
    shapes = ", ".join(f"{list(x.shape)} {x.dtype}" for x in inputs)
    title = f"{type(model).__name__} cannot run on a sample of {shapes}, the batch first"
    converter = _Converter(trace_forward(model, _is_node, _ADVICE), options, title)
    # copies, for forward may write into what it is given
    converter.run(*(x.clone() for x in inputs))
    return converter.written


def _is_node(module: nn.Module) -> bool:
    """Whether a module was made of a node of a graph, or is a graph."""
    return type(module).__module__.startswith("tracetorch.nir.")


@dataclass(frozen=True)
class _Value:
    """Hold a tensor of the forward pass, and the names of the nodes whose sum it is."""

    tensor: Tensor
    sources: list[str]

    @property
    def shape(self) -> Shape:
        if self.tensor.ndim > 1:
            return tuple(self.tensor.shape[1:])
        got = list(self.tensor.shape)
        raise ValueError(f"a value has shape {got}; a sample needs a dimension behind B.")


class _Converter(fx.Interpreter):
    """Run a traced program once, and add a node to the graph for each of its steps."""

    def __init__(self, program: fx.GraphModule, options: WriteOptions, title: str) -> None:
        super().__init__(program)
        self.extra_traceback = False  # which would go into our messages
        self.options, self.title = options, title
        self.written = NodeGraph()
        self.reserved = set(_named(program.graph.output_node().args[0]))
        self.arguments = len(program.graph.find_nodes(op="placeholder"))
        self.called: set[nn.Module] = set()

    def run_node(self, n: fx.Node) -> Any:
        self.step = n
        return super().run_node(n)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a part of the model; blame an error on the sample, which does not fit it."""
        try:
            return function(*args)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            problem = str(error).partition("\n")[0]
            raise ValueError(f"{self.title}: {problem}. Give one that the model takes.") from error

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        tensor = self.attempt(super().placeholder, target, args, kwargs)
        if not isinstance(tensor, Tensor):  # an argument left at its default
            return tensor
        name = "input" if self.arguments == 1 else target
        return self.add(name, boundary("Input", _Value(tensor, []).shape), tensor)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        problem = f"the model's forward uses {target!r} by itself; in NIR parameters and states"
        raise ValueError(f"{problem} belong to a layer. Use nn.Linear, say.")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module, text = self.fetch_attr(target), repr(self.fetch_attr(target))
        # a short module as it prints, a large one by its type
        title = f"layer {target!r}, {type(module).__name__ if chr(10) in text else text},"
        if len(args) != 1 or kwargs or not isinstance(args[0], _Value):
            raise ValueError(f"{title} is called with more than one tensor; a node has one input.")
        if module in self.called and isinstance(module, TTModule):  # the leaves among them remember
            problem = "is called twice in one step; as two nodes it would have two memories."
            raise ValueError(f"{title} {problem}")
        self.called.add(module)
        x = args[0]
        if isinstance(module, PASSING):
            return x
        tensor = self.output_of(module, x.tensor)
        node = node_of(module, x.shape, title, self.options)
        # A batch norm goes into the linear node that made its input, if nothing else reads that.
        before, linear = self.step.all_input_nodes[0], self.written.nodes[x.sources[0]]
        own = before.op == "call_module" and x.sources == [_node_name(before.target)]
        alone = own and len(before.users) == 1 and isinstance(module, _NORMS)
        if alone and isinstance(linear, Node) and linear.kind in LINEAR:
            self.written.nodes[x.sources[0]] = fold_norm(linear, *norm_arrays(module))
            return x
        return self.add(target, node, tensor, x)

    def output_of(self, module: nn.Module, x: Tensor) -> Any:
        """Return a tensor of the shape of the output, without touching states or statistics."""
        if isinstance(module, (SequenceLayer, *_NORMS)):
            return x.clone()
        if isinstance(module, NIRModel):
            return x.new_zeros(len(x), *module.wiring.shapes[module.wiring.outputs[0]])
        return self.attempt(module, x)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        title = f"{target if isinstance(target, str) else target.__name__}() in the model's forward"
        values = [value for value in args if isinstance(value, _Value)]
        dims = dict(zip(("start_dim", "end_dim"), args[1:], strict=False)) | kwargs
        if target in IN_PLACE and values:
            self.check_overwritten(values[0].tensor, "+=" if target is operator.iadd else target)
        if target in _ADDING and len(args) == len(values) == 2 and not kwargs:
            one, other = values
            add = operator.iadd if target in IN_PLACE else torch.add
            tensor = self.attempt(add, one.tensor, other.tensor)
            return _Value(tensor, one.sources + other.sources)
        if target in _FLATTENING and all(isinstance(dim, int) for dim in dims.values()):
            start, end = dims.get("start_dim", 0), dims.get("end_dim", -1)
            node = flatten_node(start, end, values[0].shape, title)
            tensor = torch.flatten(values[0].tensor, start, end)
            return self.add(self.step.name, node, tensor, values[0])
        problem = f"{title} has no counterpart in NIR: between modules, values can be added and"
        raise ValueError(f"{problem} flattened. Write it as a module, or leave it out.")

    call_method = call_function

    def check_overwritten(self, written: Tensor, operation: str) -> None:
        # The interpreter drops a value after its last use; what it still holds is used again.
        done = self.user_to_last_uses.get(self.step, [])
        for node, value in self.env.items():
            shared = isinstance(value, _Value) and value.tensor.data_ptr() == written.data_ptr()
            if shared and node.users and node not in done:
                raise ValueError(
                    f"{operation} in the model's forward writes into {node.name!r}, which is used "
                    "again; edges carry what a node gave. Write y = y + x."
                )

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.reserved = set()
        for name, value in _named(args[0]).items():
            if not isinstance(value, _Value):
                raise ValueError("the model must return a tensor, or a tuple or dict of tensors.")
            self.add(name, boundary("Output", value.shape), value.tensor, value)

    def add(self, path: str, node: Node | NodeGraph, tensor: Tensor, *inputs: _Value) -> _Value:
        """Add a node with its input; return its output, a value of the shape of ``tensor``."""
        name = self.written.add(self.unused(_node_name(path)), node)
        for source in [source for value in inputs for source in value.sources]:
            if (source, name) in self.written.edges:  # x + x: an edge is there or not
                copy = elementwise("Scale", inputs[0].shape, scale=1.0)
                source = self.written.add(self.unused(f"{name}_again"), copy, source)
            self.written.edges.append((source, name))
        return _Value(tensor, [name])

    def unused(self, name: str) -> str:
        """Return a name that no node has, nor an Output will need."""
        unused, i = name, 1
        while unused in self.written.nodes or unused in self.reserved:
            unused, i = f"{name}_{i}", i + 1
        return unused


def _named(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, (tuple, list)):
        outputs = {f"output_{i}": value for i, value in enumerate(outputs)}
    named = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {str(name): value for name, value in named.items()}


def _node_name(path: Any) -> str:
    # peers take a dot for the end of a part of the name, or refuse it
    return str(path).replace(".", "_")
