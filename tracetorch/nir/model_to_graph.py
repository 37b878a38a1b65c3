"""Convert a model to a NIR graph: the modules that it calls, and what flows between them."""

from __future__ import annotations

import inspect
from collections.abc import Collection

from torch import Tensor, nn

from tracetorch.core.hooks import hooked_weights
from tracetorch.nir.model import NIRModel
from tracetorch.nir.module_to_node import INTEGERS, PASSING, flatten_node, model_graph, node_of
from tracetorch.nir.node_graph import LINEAR, Node, NodeGraph, Shape, boundary, elementwise
from tracetorch.nir.options import WriteOptions
from tracetorch.nir.weight_folding import fold_norm, norm_arrays
from tracetorch.snn import TTModule
from tracetorch.snn import model_graph as models
from tracetorch.snn.model_graph import is_layer, read_model, unused

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...], options: WriteOptions) -> NodeGraph:
    """Convert one time step of ``model``, for inputs like these, without touching states."""
    if isinstance(model, NIRModel):
        return model_graph(model, options)
    read = read_model(model, *inputs, is_leaf=_is_leaf)
    outputs = read.output
    if isinstance(outputs, tuple | list):
        outputs = {f"output_{i}": each for i, each in enumerate(outputs)}
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    if not all(isinstance(each, models.Node) for each in outputs.values()):
        raise ValueError("the model must return a tensor, or a tuple or dict of tensors.")
    writer = _Writer(read, options, {str(name) for name in outputs})
    alone = len(inspect.signature(model.forward).parameters) == 1
    for node in read.inputs:
        name = "input" if alone else node.name
        writer.sources[node] = [writer.add(name, boundary("Input", _shape(node)))]
    for node in read.nodes[len(read.inputs) :]:
        writer.sources[node] = writer.call(node)
    writer.reserved = ()
    for name, node in outputs.items():
        writer.add(str(name), boundary("Output", _shape(node)), node)
    return writer.written


def _is_leaf(module: nn.Module) -> bool:
    made_of_nodes = type(module).__module__.startswith("tracetorch.nir.")
    return is_layer(module) or made_of_nodes or isinstance(module, INTEGERS)


def _shape(node: models.Node) -> Shape:
    if node.shape is None or len(node.shape) < 2:
        got = None if node.shape is None else list(node.shape)
        raise ValueError(f"{node.place} has shape {got}; a sample needs a dimension behind B.")
    return tuple(node.shape[1:])


class _Writer:
    """Add a node to a NIR graph for each of a model's."""

    def __init__(
        self, read: models.ModelGraph, options: WriteOptions, reserved: Collection[str]
    ) -> None:
        self.read, self.options, self.reserved = read, options, reserved
        self.written = NodeGraph()
        # by node the names of those whose sum it is
        self.sources: dict[models.Node, list[str]] = {}

    def call(self, node: models.Node) -> list[str]:
        """Write the call of a module or a function; return the names of what it gives."""
        if node.operation in ("add", "add_") and node.inputs == list(node.args) and not node.kwargs:
            return [name for each in node.inputs for name in self.sources[each]]
        if node.module is None and node.operation != "flatten":
            raise ValueError(
                f"{node.place} has no counterpart in NIR: between modules, values can be added and "
                "flattened. Write it as a module, or leave it out."
            )
        if node.args[:1] != tuple(node.inputs):
            raise ValueError(f"{node.place} is given more than one value; a node of NIR has one.")
        (source,), module = node.inputs, node.module
        if module is None:
            dims = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            start, end = dims.get("start_dim", 0), dims.get("end_dim", -1)
            return [
                self.add(node.name, flatten_node(start, end, _shape(source), node.place), source)
            ]
        if any(each.module is module for each in self.sources) and isinstance(module, TTModule):
            raise ValueError(
                f"{node.place} is called twice in one step; two nodes would have two memories."
            )
        if isinstance(module, PASSING):
            return self.sources[source]
        if hooked_weights(module):  # which put the weights of now in place
            for hook in module._forward_pre_hooks.values():
                hook(module, ())
        made = node_of(module, _shape(source), node.place, self.options)
        # A batch norm goes into the linear node that made its input, if nothing else reads that.
        (name, *others), users = self.sources[source], self.read.users[source]
        before = self.written.nodes[name]
        own = source.module is not None and not isinstance(source.module, PASSING) and not others
        alone = own and users == [node] and isinstance(module, _NORMS)
        if alone and isinstance(before, Node) and before.kind in LINEAR:
            self.written.nodes[name] = fold_norm(before, *norm_arrays(module))
            return [name]
        return [self.add(node.name or "0", made, source)]

    def add(self, path: str, node: Node | NodeGraph, *inputs: models.Node) -> str:
        """Add a node with its input, and return its name."""
        nodes = self.written.nodes
        # peers take a dot for the end of a part of the name, or refuse it
        name = unused(path.replace(".", "_"), {*nodes, *self.reserved})
        nodes[name] = node
        for source in (name for each in inputs for name in self.sources[each]):
            if (source, name) in self.written.edges:  # x + x: an edge is there or not
                copy = elementwise("Scale", _shape(inputs[0]), scale=1.0)
                source = self.written.add(unused(f"{name}_again", nodes), copy, source)
            self.written.edges.append((source, name))
        return name
