"""What a module is in NIR: a neuron layer, one of PyTorch's, or one that a graph was read into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracetorch.nir.forms import compact, constant, exact
from tracetorch.nir.graph import Graph, Node, Shape, membrane, over
from tracetorch.nir.model import NIRModel
from tracetorch.nir.modules import Across, DelayLine, Rescale, Spike
from tracetorch.nir.neurons import Membrane
from tracetorch.nir.plain import LINEAR, PLAIN, array
from tracetorch.nir.shapes import leaving
from tracetorch.nir.writing import Writing
from tracetorch.snn import LeakyIntegrator, Neuron, Recurrent


def converted(module: nn.Module, shape: Shape, told: str, how: Writing) -> Node | Graph:
    """The node, or the graph, that computes what ``module`` does.

    Args:
        module: the module; types are compared exactly, for a subclass may compute anything.
        shape: the shape of its input without the batch.
        told: how messages call it.
        how: what is to be written.

    Raises:
        ValueError: NIR has nothing for the module, or not for how it is set.
    """
    if isinstance(module, LeakyIntegrator) and _runs_as(module, LeakyIntegrator):
        if how.mode == "exact":
            return exact(module, shape, how.clock, told)
        return compact(module, shape, how.clock, told, how.allow_hard_reset)
    rule = _TABLE.get(type(module))
    if rule is None:
        hint = _HINTS.get(type(module), "Replace it, or leave it out of what is exported.")
        raise ValueError(f"{told} has no counterpart in NIR. {hint}")
    return rule(module, shape, told, how)


def _runs_as(module: nn.Module, kind: type[Neuron]) -> bool:
    """Whether a subclass has left alone what it computes."""
    return all(
        getattr(type(module), name) is getattr(kind, name)
        for name in ("forward", "forward_step", "step")
    )


def _recurrent(m: Recurrent, shape: Shape, told: str, how: Writing) -> Graph:
    """The neuron and a connection back to it; its bias, which acts at once, goes another way."""
    if how.mode == "compact":
        raise ValueError(
            f"{told} hears itself again, which peers read in ways of their own. Use mode='exact'."
        )
    back = converted(m.connection, shape, f"the connection of {told}", how)
    if not isinstance(back, Node) or back.kind not in LINEAR:
        raise ValueError(
            f"{told} is connected to itself by {type(m.connection).__name__}; in NIR it must be "
            "nn.Linear or a convolution."
        )
    came = leaving("back", back, shape)
    if came != shape:
        raise ValueError(
            f"{told} needs a connection that keeps the shape {list(shape)}, got {list(came)}."
        )
    edges = [("input", "neuron"), ("neuron", "back"), ("back", "neuron"), ("neuron", "output")]
    nodes: dict[str, Node | Graph] = {
        "input": Node("Input", settings={"shape": shape}),
        "neuron": converted(m.neuron, shape, f"the neuron of {told}", how),
        "output": Node("Output", settings={"shape": shape}),
    }
    bias = back.arrays.get("bias")
    if bias is None or not bias.any():
        nodes["back"] = back
    else:
        drive = constant(over(shape, bias.reshape(-1, *[1] * (len(shape) - 1))), shape)
        nodes |= drive
        edges += pairwise(("input", *drive, "neuron"))
        nodes["back"] = (
            Node("Linear", {"weight": back.arrays["weight"]})
            if back.kind == "Affine"
            else Node(back.kind, {**back.arrays, "bias": np.zeros_like(bias)}, back.settings)
        )
    return Graph(nodes, edges)


# The modules that a graph was read into


def _rescale(m: Rescale, shape: Shape, told: str, how: Writing) -> Node:
    return Node("Scale", {"scale": over(shape, array(m.scale)).astype(array(m.scale).dtype)})


def _spike(m: Spike, shape: Shape, told: str, how: Writing) -> Node:
    threshold = array(m.threshold)
    return Node("Threshold", {"threshold": over(shape, threshold).astype(threshold.dtype)})


def _delay(m: DelayLine, shape: Shape, told: str, how: Writing) -> Node:
    return membrane("Delay", shape, delay=m.steps.cpu().numpy() * how.clock.dt)


def _membrane(m: Membrane, shape: Shape, told: str, how: Writing) -> Node:
    if m.v_threshold is not None and m.reset == "subtract" and not how.allow_hard_reset:
        raise ValueError(
            f"{told} was read with reset='subtract', which its node cannot say. Give "
            "allow_hard_reset=True, and reset='subtract' when you read it."
        )
    after = -m.dim - 1
    v: dict[str, NDArray[np.float64]] = {}
    for name in m.constraints:
        raw = getattr(m, f"raw_{name}").detach().to("cpu", torch.float64)
        raw = torch.sigmoid(-raw) if name in ("alpha", "beta") else raw
        v[name] = over(shape, raw.reshape(-1, *[1] * after).numpy() if raw.ndim else raw.numpy())
    if m.dt != how.clock.dt and "beta" not in v:
        raise ValueError(f"{told} was read with dt={m.dt}, and cannot be written for another.")
    tau = {"alpha": "tau_syn", "beta": "tau_mem" if "alpha" in v else "tau"}
    arrays = {
        tau.get(name, name): how.clock.tau(value) if name in tau else value
        for name, value in v.items()
    }
    kind = ("I" if "beta" not in v else "LI") + ("F" if "v_threshold" in v else "")
    return Node(f"Cuba{kind}" if "alpha" in v else kind, arrays)


def _across(m: Across, shape: Shape, told: str, how: Writing) -> Node | Graph:
    return _reshaped(converted(m.neuron, (int(np.prod(shape)),), told, how), shape)


def _reshaped(node: Node | Graph, shape: Shape) -> Node | Graph:
    """Nodes that work element by element, for samples of another shape."""
    if isinstance(node, Graph):
        inner = {name: _reshaped(part, shape) for name, part in node.nodes.items()}
        return Graph(inner, node.edges)
    arrays = {name: value.reshape(shape) for name, value in node.arrays.items()}
    return Node(node.kind, arrays, dict.fromkeys(node.settings, shape))


def _model(m: NIRModel, shape: Shape, told: str, how: Writing) -> Graph:
    """A graph that was read, with the parameters it has now."""
    nodes: dict[str, Node | Graph] = {}
    wiring = m.wiring
    for name in wiring.order:
        came = wiring.now[name]
        here = wiring.shapes[came[0]] if came else wiring.shapes[name]
        if name in wiring.inputs or name in wiring.outputs:
            kind = "Input" if name in wiring.inputs else "Output"
            nodes[name] = Node(kind, settings={"shape": here})
        elif type(m.nodes[m.keys[name]]) is nn.Identity:  # the ends of a graph within
            nodes[name] = membrane("Scale", here, scale=1.0)
        else:
            inner = m.nodes[m.keys[name]]
            nodes[name] = converted(inner, here, f"node {name!r}, {inner!r},", how)
    edges = [(source, name) for name in wiring.order for source in wiring.now[name]]
    edges += [(source, name) for name in wiring.order for source in wiring.late[name]]
    return Graph(nodes, edges)


_TABLE: Mapping[type[nn.Module], Callable[[Any, Shape, str, Writing], Node | Graph]] = {
    Across: _across,
    DelayLine: _delay,
    Membrane: _membrane,
    **PLAIN,
    NIRModel: _model,
    Recurrent: _recurrent,
    Rescale: _rescale,
    Spike: _spike,
}
_HINTS: Mapping[type[nn.Module], str] = {
    nn.MaxPool2d: "Use nn.AvgPool2d.",
    nn.MaxPool1d: "Use a convolution with a stride.",
    nn.ReLU: "Spikes are its non-linearity: use snn.LIF.",
}
