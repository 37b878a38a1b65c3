"""Convert a model to a graph: the modules it calls, and what flows between them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracetorch.nir.forward_tracing import NORMS, check_modules, title_of, trace_forward
from tracetorch.nir.graph import LINEAR, Graph, Node, Shape, boundary, elementwise
from tracetorch.nir.model import NIRModel
from tracetorch.nir.module_to_node import PASSING, flatten_node, model_graph, node_of
from tracetorch.nir.options import WriteOptions
from tracetorch.nir.weight_folding import fold_norm, norm_affine

_ADDING = (operator.add, operator.iadd, torch.add, "add", "add_")
_FLATTENING = (torch.flatten, "flatten")


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...], options: WriteOptions) -> Graph:
    """Return the graph of ``model`` for one time step like ``inputs``; its states stay as they are.

    Raises:
        TypeError: ``forward`` cannot be followed.
        ValueError: a module or an operation has no counterpart; its path is named.
    """
    check_modules(model)
    if isinstance(model, NIRModel):
        return model_graph(model, options)
    return _Converter(trace_forward(model, inputs), options).graph


class _Converter:
    """Turn the steps of a traced program into nodes, and what they pass on into edges."""

    def __init__(self, program: fx.GraphModule, options: WriteOptions) -> None:
        self.program = program
        self.options = options
        self.graph = Graph()
        self.outputs = _outputs(program)
        self.reserved = set(self.outputs)  # names that the Outputs will need
        # the nodes whose sum a value of the program is
        self.sources: dict[fx.Node, list[str]] = {}
        for node in program.graph.nodes:
            getattr(self, f"_{node.op}")(node)

    def _placeholder(self, value: fx.Node) -> None:
        alone = len(self.program.graph.find_nodes(op="placeholder")) == 1
        if "shape" in value.meta:
            node = boundary("Input", _shape(value))
            self._add(value, "input" if alone else str(value.target), node, [])

    def _call_module(self, value: fx.Node) -> None:
        path = str(value.target)
        module = self.program.get_submodule(path)
        title = title_of(path, module)
        if len(value.args) != 1 or value.kwargs or not isinstance(value.args[0], fx.Node):
            raise ValueError(f"{title} is called with more than one tensor; a node has one input.")
        before = value.args[0]
        sources = self._sources_of(before, title)
        if isinstance(module, PASSING):
            self.sources[value] = sources
            return
        node = node_of(module, _shape(before), title, self.options)
        linear = self.graph.nodes[sources[0]]
        # A batch norm goes into the linear node that `before` has made, if nothing else reads it.
        own = before.op == "call_module" and sources == [_node_name(str(before.target))]
        alone = own and len(before.users) == 1 and isinstance(module, NORMS)
        if alone and isinstance(linear, Node) and linear.kind in LINEAR:
            self.graph.nodes[sources[0]] = fold_norm(linear, *norm_affine(module))
            self.sources[value] = sources
        else:
            self._add(value, path, node, sources)

    def _call_function(self, value: fx.Node) -> None:
        target = value.target
        title = f"{target if isinstance(target, str) else target.__name__}() in the model's forward"
        tensors = [a for a in value.args if isinstance(a, fx.Node)]
        dims: dict[str, Any] = (
            dict(zip(("start_dim", "end_dim"), value.args[1:], strict=False)) | value.kwargs
        )
        if target in _ADDING and len(value.args) == len(tensors) == 2 and not value.kwargs:
            self.sources[value] = [s for tensor in tensors for s in self._sources_of(tensor, title)]
        elif target in _FLATTENING and all(isinstance(dim, int) for dim in dims.values()):
            start, end = dims.get("start_dim", 0), dims.get("end_dim", -1)
            try:
                node = flatten_node(start, end, _shape(tensors[0]))
            except ValueError as error:
                raise ValueError(f"{title} {error}") from error
            self._add(value, value.name, node, self._sources_of(tensors[0], title))
        else:
            raise ValueError(
                f"{title} has no counterpart in NIR: between modules, values can be added and "
                "flattened. Write it as a module that has one, or leave it out."
            )

    _call_method = _call_function

    def _output(self, value: fx.Node) -> None:
        self.reserved = set()
        for name, output in self.outputs.items():
            sources = self._sources_of(output, "the output")
            self._link(name, boundary("Output", _shape(output)), sources)

    def _add(self, value: fx.Node, path: str, node: Node | Graph, sources: list[str]) -> None:
        self.sources[value] = [self._link(_node_name(path), node, sources)]

    def _link(self, name: str, node: Node | Graph, sources: list[str]) -> str:
        name = self.graph.add(self._free(name), node)
        for source in sources:
            if (source, name) in self.graph.edges:  # x + x: an edge is there or not
                value = next(v for v, made in self.sources.items() if made == [source])
                copy = elementwise("Scale", _shape(value), scale=1.0)
                source = self.graph.add(self._free(f"{name}_again"), copy, source)
            self.graph.edges.append((source, name))
        return name

    def _free(self, name: str) -> str:
        free, i = name, 1
        while free in self.graph.nodes or free in self.reserved:
            free, i = f"{name}_{i}", i + 1
        return free

    def _sources_of(self, value: fx.Node, title: str) -> list[str]:
        if value not in self.sources:
            raise ValueError(f"{title} gets {value.name!r}, which is no output of a module.")
        return self.sources[value]


def _outputs(program: fx.GraphModule) -> dict[str, fx.Node]:
    """Return what the model returns, by name."""
    outputs: Any = program.graph.output_node().args[0]
    if isinstance(outputs, fx.Node):
        outputs = {"output": outputs}
    elif isinstance(outputs, (tuple, list)):
        outputs = {f"output_{i}": each for i, each in enumerate(outputs)}
    if not isinstance(outputs, dict) or not all(isinstance(v, fx.Node) for v in outputs.values()):
        raise ValueError("the model must return a tensor, or a tuple or dict of tensors.")
    return {str(name): value for name, value in outputs.items()}


def _shape(value: fx.Node) -> Shape:
    shape: Shape = value.meta["shape"]
    if len(shape) < 2:
        raise ValueError(
            f"{value.name!r} has shape {list(shape)}; a sample needs a dimension behind the batch."
        )
    return shape[1:]


def _node_name(path: str) -> str:
    """Return a node's name: peers take ``.`` for a part of a name, or refuse it."""
    return path.replace(".", "_")
