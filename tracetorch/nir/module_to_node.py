"""Convert a module to the NIR node, or the graph of nodes, that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracetorch.nir.layer_nodes import fire_node, layer_node, neuron_dim, to_array
from tracetorch.nir.modules import Membrane, NIRModel, PerElement
from tracetorch.nir.nodes import (
    CONV,
    LINEAR,
    Node,
    NodeGraph,
    Options,
    Shape,
    boundary,
    elementwise,
)
from tracetorch.snn import Delay, LeakyIntegrator, LockedDropout, Neuron, Recurrent, SparseLinear
from tracetorch.snn.batch_norm import norm_affine
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.neuron import beside_step

# Modules that pass their input on where nothing is trained.
PASSING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    LockedDropout,
)
_HINTS: Mapping[type[nn.Module], str] = {
    nn.MaxPool2d: "Use nn.AvgPool2d.",
    nn.MaxPool1d: "Use a convolution with a stride.",
    nn.ReLU: "Spikes are its non-linearity: use snn.LIF.",
    Neuron: "NIR has the twelve layers of tt.snn and models.IF.",
}


def node_of(module: nn.Module, shape: Shape, title: str, options: Options) -> Node | NodeGraph:
    """Return what computes a module; its type is compared exactly: a subclass computes anything."""
    if type(module) is NIRModel:
        return model_graph(module, options)
    if type(module) is Recurrent:
        return _recurrent(module, shape, title, options)
    if type(module) is nn.Sequential and len(module) == 1:
        return node_of(module[0], shape, title, options)
    if type(module) is nn.Sequential:
        if [type(each) for each in module][::2] != [nn.Flatten, nn.Unflatten]:
            inside = ", ".join(type(each).__name__ for each in module)
            raise ValueError(f"{title} is a chain, of {inside}, and must be one module here.")
        # a neuron layer between the two
        return _reshaped(node_of(module[1], (math.prod(shape),), title, options), shape)
    try:
        own = beside_step(module) if isinstance(module, Neuron) else None
        plain = own is None and getattr(module, "step", None) is LeakyIntegrator.step
        if isinstance(module, LeakyIntegrator) and plain:
            return layer_node(module, shape, options)
        # the values of a connected layer are in the file, not what keeps them so
        if (kind := plain_class(module)) in _RULES:
            return _RULES[kind](module, shape, options)
        neuron = module if isinstance(module, Neuron) and own is None else None
        if neuron and (node := fire_node(neuron, shape, options)):
            return node
        hints = [hint for kind, hint in _HINTS.items() if isinstance(module, kind) and not own]
        hint = hints[0] if hints else "Replace it, or leave it out of what is exported."
        raise ValueError(f"{own or 'has no counterpart in NIR'}. {hint}")
    except ValueError as error:
        raise ValueError(f"{title} {error}") from error


def _recurrent(m: Recurrent, shape: Shape, title: str, options: Options) -> NodeGraph:
    if options.mode == "compact" or m.holds_population:
        advice = "Use mode='exact', and a Recurrent for each neuron layer."
        raise ValueError(f"{title} feeds an output back. {advice}")
    back = node_of(m.connection, shape, f"the connection of {title}", options)
    if not isinstance(back, Node) or back.kind not in LINEAR:
        problem = f"{title} is connected to itself by {type(m.connection).__name__}"
        raise ValueError(f"{problem}; in NIR it must be nn.Linear or a convolution.")
    graph = NodeGraph({"input": boundary("Input", shape)})
    sources = ["input"]
    # Peers bring no bias over an edge that leads back at the first step: give it another way in.
    bias = back.arrays.get("bias")
    if bias is not None and bias.any():
        per_channel = bias.reshape(-1, *[1] * (len(shape) - 1))
        sources.append(graph.add_constant(per_channel, shape, "input"))
        if back.kind == "Affine":
            back = Node("Linear", {"weight": back.arrays["weight"]})
        else:
            back.arrays["bias"] = np.zeros_like(bias)
    graph.add("neuron", node_of(m.neuron, shape, f"the neuron of {title}", options), *sources)
    graph.edges.append((graph.add("back", back, "neuron"), "neuron"))
    graph.add("output", boundary("Output", shape), "neuron")
    return graph


def _reshaped(node: Node | NodeGraph, shape: Shape) -> Node | NodeGraph:
    """Return nodes that work element by element, for samples of another shape."""
    if isinstance(node, NodeGraph):
        parts = {name: _reshaped(part, shape) for name, part in node.nodes.items()}
        return NodeGraph(parts, node.edges)
    arrays = {name: value.reshape(shape) for name, value in node.arrays.items()}
    return Node(node.kind, arrays, dict.fromkeys(node.settings, shape))


def model_graph(model: NIRModel, options: Options) -> NodeGraph:
    """Return the graph that a model was read from, with the parameters it has now."""
    graph, wiring = NodeGraph(), model.flow
    for name in wiring.order:
        shape, module = wiring.input_shape(name), model.nodes[model.keys[name]]
        if name in wiring.inputs or name in wiring.outputs:
            node: Node | NodeGraph = boundary("Input" if name in wiring.inputs else "Output", shape)
        elif type(module) is nn.Identity:  # the ends of a graph inside another one
            node = elementwise("Scale", shape, scale=1.0)
        else:
            node = node_of(module, shape, f"node {name!r} ({type(module).__name__})", options)
        scale = node if isinstance(node, Node) and node.kind == "Scale" else None
        if scale and wiring.kept and scale.silent != (name in wiring.silent):
            problem = "was a Scale by zero and is none, or is one now"
            raise ValueError(f"node {name!r} {problem}: other edges would be read as late.")
        graph.add(name, node, *wiring.now[name])
    for name in wiring.order:
        graph.edges.extend((source, name) for source in wiring.late[name])
    return graph


def _linear(m: nn.Linear | SparseLinear, shape: Shape, options: Options) -> Node:
    try:
        weight = to_array(m.weight if isinstance(m, nn.Linear) else m.dense_weight())
    except ValueError as error:
        raise ValueError(f"has no dense form, as NIR needs: {error}") from None
    if m.bias is None:
        return Node("Linear", {"weight": weight})
    return Node("Affine", {"weight": weight, "bias": to_array(m.bias)})


def _delay(m: Delay, shape: Shape, options: Options) -> Node:
    delay = m.delay.detach().to("cpu", torch.float64)
    if m.sigma > 0 or not torch.equal(delay, delay.round()):
        raise ValueError("delays by parts of a step; in NIR it must be whole ones. Call round_().")
    seconds = options.clock.dt * delay.reshape(-1, *[1] * (-neuron_dim(m, shape) - 1)).numpy()
    return elementwise("Delay", shape, delay=seconds)


def _conv(m: nn.Conv1d | nn.Conv2d, shape: Shape, options: Options) -> Node:
    if m.padding_mode != "zeros":
        raise ValueError(f"has padding_mode={m.padding_mode!r}; NIR pads with zeros.")
    weight, groups = to_array(m.weight), m.groups
    if options.mode == "compact" and groups > 1:  # peers read one group only
        out, inner, *kernel = weight.shape
        blocks = weight.reshape(groups, out // groups, inner, *kernel)
        # zero between channels of different groups
        whole = np.zeros((groups, out // groups, groups, inner, *kernel), weight.dtype)
        whole[range(groups), :, range(groups)] = blocks
        weight, groups = whole.reshape(out, groups * inner, *kernel), 1
    bias = np.zeros(len(weight), weight.dtype) if m.bias is None else to_array(m.bias)
    return _conv_node(weight, bias, shape, m.stride, m.padding, m.dilation, groups)


def _conv_node(weight: NDArray[Any], bias: NDArray[Any], shape: Shape, *settings: Any) -> Node:
    named = dict(zip(CONV, (shape[1:], *settings), strict=True))
    return Node(f"Conv{len(shape) - 1}d", {"weight": weight, "bias": bias}, named)


def norm_arrays(norm: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the factor and the summand per channel of a batch norm in eval mode."""
    affine = None if norm.training else norm_affine(norm)
    if affine is None:
        advice = "Call model.eval() before the export; it needs track_running_stats=True."
        raise ValueError(f"takes its statistics from the batch. {advice}")
    scale, shift = (to_array(each.to(norm.running_mean.dtype)) for each in affine)
    return scale, shift


def _norm(m: nn.BatchNorm1d | nn.BatchNorm2d, shape: Shape, options: Options) -> Node:
    """Return a batch norm by itself: a matrix with a diagonal, or a convolution of one pixel."""
    (scale, shift), spatial = norm_arrays(m), len(shape) - 1
    weight = np.diag(scale).reshape(len(scale), len(scale), *[1] * spatial)
    if not spatial:
        return Node("Affine", {"weight": weight, "bias": shift})
    one, zero = (1,) * spatial, (0,) * spatial
    return _conv_node(weight, shift, shape, one, zero, one, 1)


def _pool(m: nn.AvgPool2d, shape: Shape, options: Options) -> Node:
    kernel, stride, padding = (_pair(v) for v in (m.kernel_size, m.stride, m.padding))
    counts = m.count_include_pad or not any(padding)
    if m.ceil_mode or not counts or m.divisor_override not in (None, 1, kernel[0] * kernel[1]):
        raise ValueError("has ceil_mode, count_include_pad or divisor_override, which no node has.")
    kind = "SumPool2d" if m.divisor_override == 1 else "AvgPool2d"
    return Node(kind, settings={"kernel_size": kernel, "stride": stride, "padding": padding})


def _adaptive_pool(m: nn.AdaptiveAvgPool2d, shape: Shape, options: Options) -> Node:
    pairs = [(n, size or n) for n, size in zip(shape[1:], _pair(m.output_size), strict=True)]
    if any(n % size for n, size in pairs):
        made = f"makes {[size for _, size in pairs]} of {list(shape[1:])}"
        raise ValueError(f"{made}, which windows of one size do not divide. Use nn.AvgPool2d.")
    window = tuple(n // size for n, size in pairs)
    return Node("AvgPool2d", settings={"kernel_size": window, "stride": window, "padding": (0, 0)})


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def flatten_node(start: int, end: int, shape: Shape, title: str = "it") -> Node:
    """Return a Flatten; PyTorch counts dimensions with the batch, NIR without."""
    ndim = len(shape) + 1
    first, last = (dim + ndim if dim < 0 else dim for dim in (start, end))
    if not 1 <= first <= last < ndim:
        raise ValueError(f"{title} flattens from {start} to {end}: it leaves no batch in front.")
    settings = {"input_type": shape, "start_dim": first - 1, "end_dim": last - 1}
    return Node("Flatten", settings=settings)


_RULES: Mapping[type[nn.Module], Callable[[Any, Shape, Options], Node]] = {
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _pool,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Flatten: lambda m, shape, options: flatten_node(m.start_dim, m.end_dim, shape),
    nn.Linear: _linear,
    SparseLinear: _linear,
    Delay: _delay,
    # what the nodes of a graph were read into
    Membrane: Membrane.node,
    PerElement: PerElement.node,
}
