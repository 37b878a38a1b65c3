"""Convert a model to a NIR graph: the modules that it calls, and what flows between them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tracetorch.core.hooks import hooked_weights
from tracetorch.nir.module_to_node import PASSING, flatten_node, model_graph, node_of, norm_arrays
from tracetorch.nir.modules import NIRModel
from tracetorch.nir.nodes import LINEAR, Node, NodeGraph, Options, Shape, boundary, elementwise
from tracetorch.snn import TTModule
from tracetorch.snn import model_graph as models
from tracetorch.snn.model_graph import is_layer, read_model, unused

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WHOLE = ("tracetorch.nir.", "tracetorch.integers.")  # rooms of modules that are not looked into


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...], options: Options) -> NodeGraph:
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
    return is_layer(module) or type(module).__module__.startswith(_WHOLE)


def _shape(node: models.Node) -> Shape:
    if node.shape is None or len(node.shape) < 2:
        got = None if node.shape is None else list(node.shape)
        raise ValueError(f"{node.place} has shape {got}; a sample needs a dimension behind B.")
    return tuple(node.shape[1:])


class _Writer:
    """Add a node to a NIR graph for each of a model's."""

    def __init__(
        self, read: models.ModelGraph, options: Options, reserved: Collection[str]
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
            problem = "has no counterpart in NIR: between modules, values are added and flattened"
            raise ValueError(f"{node.place} {problem}. Write it as a module, or leave it out.")
        if node.args[:1] != tuple(node.inputs):
            raise ValueError(f"{node.place} is given more than one value; a node of NIR has one.")
        (source,), module = node.inputs, node.module
        if module is None:
            dims = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            start, end = dims.get("start_dim", 0), dims.get("end_dim", -1)
            made: Node | NodeGraph = flatten_node(start, end, _shape(source), node.place)
            return [self.add(node.name, made, source)]
        if any(each.module is module for each in self.sources) and isinstance(module, TTModule):
            problem = "is called twice in one step; two nodes would have two memories"
            raise ValueError(f"{node.place} {problem}.")
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
            self.written.nodes[name] = _fold_norm(before, *norm_arrays(module))
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


def _fold_norm(node: Node, scale: NDArray[Any], shift: NDArray[Any]) -> Node:
    """Return the linear node before a batch norm, and the norm, in one."""
    weight = _scaled(node.arrays["weight"], scale)
    bias = shift.astype(np.float64)
    if "bias" in node.arrays:
        bias = bias + node.arrays["bias"] * scale.astype(np.float64)
    kind = "Affine" if node.kind == "Linear" else node.kind
    return replace(node, kind=kind, arrays={"weight": weight, "bias": bias.astype(weight.dtype)})


def fold_thresholds(graph: NodeGraph) -> NodeGraph:
    """Return a graph with the same spikes and one threshold per LIF or CubaLIF where possible.

    A neuron that is zero at rest and at reset fires alike if its input and its threshold grow by
    one factor. It goes into the row of weights that feeds the neuron, if these feed nothing else,
    nothing else feeds the neuron, and, after a convolution, a channel has one threshold.
    """
    nodes = dict(graph.nodes)
    outgoing = Counter(start for start, _ in graph.edges)
    incoming = Counter(end for _, end in graph.edges)
    for start, end in graph.edges:
        linear, node = nodes[start], nodes[end]
        if not (isinstance(node, Node) and isinstance(linear, Node)) or linear.kind not in LINEAR:
            continue
        if node.kind not in ("LIF", "CubaLIF") or outgoing[start] != 1 or incoming[end] != 1:
            continue
        # The threshold as the input meets it. Where time constants differ too, v_threshold differs
        # with them: snnTorch, which reads one gain for all, then refuses the file.
        a, is_lif = node.arrays, node.kind == "LIF"
        synapse = 1.0 if is_lif else a["w_in"] / a["tau_syn"]
        gain = np.asarray(a["r"] / a["tau" if is_lif else "tau_mem"] * synapse)
        rows = (node.arrays["v_threshold"] / gain).reshape(len(gain), -1)
        uniform, uniform_rows = (
            np.allclose(rows, value, rtol=1e-12, atol=0.0) for value in (rows[0, 0], rows[:, :1])
        )
        if uniform or not uniform_rows or len(rows) != len(linear.arrays["weight"]):
            continue
        goal = np.exp(np.log(rows[:, 0]).mean())
        scaled = {name: _scaled(v, goal / rows[:, 0]) for name, v in linear.arrays.items()}
        nodes[start] = replace(linear, arrays=scaled)
        nodes[end] = replace(node, arrays={**node.arrays, "v_threshold": goal * gain})
    return replace(graph, nodes=nodes)


def _scaled(value: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    per_row = factors.astype(np.float64).reshape(-1, *[1] * (value.ndim - 1))
    return (value * per_row).astype(value.dtype)
