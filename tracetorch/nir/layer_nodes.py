"""Write a neuron layer as NIR nodes: exactly, or in the compact form that peers read."""

from __future__ import annotations

from functools import partial

import numpy as np

from tracetorch.nir.layer_values import describe, neuron_dim, read_values
from tracetorch.nir.neuron_nodes import neuron_graph
from tracetorch.nir.node_graph import Node, NodeGraph, Shape, boundary, elementwise
from tracetorch.nir.options import Array, Clock, WriteOptions
from tracetorch.nir.step_algebra import check_spikes
from tracetorch.snn import LeakyIntegrator, Neuron
from tracetorch.snn.neuron import starts_from_zero


def layer_node(layer: LeakyIntegrator, shape: Shape, options: WriteOptions) -> Node | NodeGraph:
    """Convert ``layer`` for samples of ``shape``; raise where NIR has no nodes for it."""
    for spike in filter(None, (layer.pos_spike, layer.neg_spike)):
        check_spikes(spike, layer.raw_beta.device)
    _check(layer, shape)
    values = read_values(layer, shape)
    if options.mode == "compact":
        return _compact(layer, values, shape, options)
    node = _exact(layer, values, shape, options.clock)
    describe(node, layer, shape, options.clock)
    return node


def neuron_node(layer: Neuron, shape: Shape, options: WriteOptions) -> Node | NodeGraph:
    """Convert a neuron of any ``step`` for samples of ``shape``; raise where NIR has no nodes."""
    node = neuron_graph(layer, shape, options.clock)
    _check(layer, shape)
    if options.mode == "compact":
        if isinstance(node, NodeGraph):
            raise ValueError("is a graph of several nodes, which no peer reads. Use mode='exact'.")
        return node
    describe(node, layer, shape, options.clock)
    return node


def _check(layer: Neuron, shape: Shape) -> None:
    if not starts_from_zero(layer):
        raise ValueError("starts from states other than zero, which NIR has no place for.")
    if not -len(shape) <= neuron_dim(layer, shape) < 0:
        raise ValueError(f"has its neurons at dim={layer.dim}, which must not be the batch's.")


def _exact(
    layer: LeakyIntegrator, v: dict[str, Array], shape: Shape, clock: Clock
) -> Node | NodeGraph:
    """Write the parts of a layer as nodes of their own.

    ::

        syn    LI(alpha)
        mem    LI(beta), v = beta v + gain I         gain = (1 - beta) R
        p      Threshold(theta); back to mem one step later through Scale(-beta theta / gain)
        n      Scale(-1) -> Threshold(|theta|); back through Scale(beta |theta| / gain)
        rec    LI(gamma) of the output -> Scale(rec_weight); back to mem one step later
        bias   Scale(0) -> Threshold(-1), which always fires -> Scale(bias)

    The feedback is what a soft reset is: what the membrane has lost, it has lost beta times at the
    next step. With ``reset="zero"`` the membrane is a LIF itself; a membrane alone is one node.
    """
    sides = [side for side in ("pos", "neg") if f"{side}_threshold" in v]
    hard = layer.reset == "zero" and bool(sides)
    if hard and len(sides) == 2:
        raise ValueError("resets to zero from above and from below. Use reset='subtract'.")
    graph = NodeGraph({"input": boundary("Input", shape)})

    def leaky(name: str, decay: str, *sources: str) -> str:
        r = 1.0 if getattr(layer, f"{decay}_ema") else 1 / v[decay]
        node = elementwise("LI", shape, tau=clock.tau(v[decay]), r=r, v_leak=0.0)
        return graph.add(name, node, *sources)

    scale = partial(_scale, graph, shape)
    drive = [leaky("syn", "alpha", "input") if "alpha" in v else "input"]
    if "bias" in v:
        drive.append(graph.add_constant(v["bias"], shape, "input"))
    if hard and sides == ["neg"]:  # the same neuron upside down
        drive = [scale("mirror", -1.0, *drive)]
    entrance = "mirror" if drive == ["mirror"] else "mem"
    leaky("mem", "beta", *drive)
    membrane = graph.nodes["mem"]
    if hard and isinstance(membrane, Node):
        spiking = elementwise("LIF", shape, v_threshold=v[f"{sides[0]}_threshold"], v_reset=0.0)
        membrane = graph.nodes["mem"] = Node("LIF", membrane.arrays | spiking.arrays)

    # the output is the sum of both
    outputs = [_spikes(layer, v, shape, side, graph) for side in sides] or ["mem"]
    if "gamma" in v:
        weight = v.get("rec_weight", np.zeros(shape))
        back = scale("rec_weight", weight, leaky("rec", "gamma", *outputs))
        graph.edges.append((back, entrance))
    graph.add("output", boundary("Output", shape), *outputs)
    return membrane if len(graph.nodes) == 3 else graph


def _scale(graph: NodeGraph, shape: Shape, name: str, factor: Array | float, *sources: str) -> str:
    return graph.add(name, elementwise("Scale", shape, scale=factor), *sources)


def _spikes(
    layer: LeakyIntegrator, v: dict[str, Array], shape: Shape, side: str, graph: NodeGraph
) -> str:
    """Write the branch of nodes for the spikes of one sign; return its last one."""
    scale = partial(_scale, graph, shape)
    sign, theta = (1.0 if side == "pos" else -1.0), v[f"{side}_threshold"]
    last = "mem"
    if layer.reset != "zero":
        last = scale("mirror", -1.0, last) if side == "neg" else last
        spike = elementwise("Threshold", shape, threshold=theta)
        last = graph.add(f"{side}_spike", spike, last)
        if layer.reset == "subtract":
            gain = v["beta"] if layer.beta_ema else 1.0
            lost = -sign * (1 - v["beta"]) * theta / gain
            graph.edges.append((scale(f"{side}_reset", lost, last), "mem"))
    if side == "neg" or f"{side}_scale" in v:
        last = scale(f"{side}_scale", sign * v.get(f"{side}_scale", np.ones(shape)), last)
    return last


def _compact(
    layer: LeakyIntegrator, v: dict[str, Array], shape: Shape, options: WriteOptions
) -> Node:
    """Write a layer as one node, in the form that every peer reads.

    ::

        LIF      R = 1,               threshold (1 - beta) theta      (theta where beta averages)
        CubaLIF  R = 1 / (1 - beta),  w_in = 1 / (1 - alpha)          (tau / dt, for "euler")
                 threshold theta, / (1 - alpha) where alpha averages, / (1 - beta) where beta does
        LI       R = 1, or 1 / (1 - beta) where beta does not average
        CubaLI   likewise
    """
    theta = v.get("pos_threshold")
    soft = theta is not None and layer.reset == "subtract" and not options.allow_hard_reset
    problems = {
        "recurrence (gamma)": "gamma" in v,
        "spikes of two signs (neg_threshold)": "neg_threshold" in v,
        "a scale on its spikes (pos_scale)": "pos_scale" in v,
        "a constant drive (bias)": "bias" in v,
        "a threshold and no reset": theta is not None and layer.reset == "none",
        "a reset by subtraction (or give allow_hard_reset=True)": soft,
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise ValueError(f"has {found[0]}, which no compact node has. Use mode='exact'.")
    cuba, tau = "alpha" in v, options.clock.tau
    gains: dict[str, Array] = {}
    for name in ("alpha", "beta") if cuba else ("beta",):
        averages = bool(getattr(layer, f"{name}_ema"))
        # The gain that peers expect where there are spikes; the threshold makes up for it.
        one = averages if theta is None else not cuba
        gains[name] = np.ones(shape) if one else 1 / v[name]
        if theta is not None and one != averages:
            theta = theta * v[name] if one else theta / v[name]
    fields = {"r": gains["beta"], "v_leak": 0.0}
    kind = "LI"
    if theta is not None:
        kind, fields = "LIF", fields | {"v_threshold": theta, "v_reset": 0.0}
    if not cuba:
        return elementwise(kind, shape, tau=tau(v["beta"]), **fields)
    fields |= {"tau_syn": tau(v["alpha"]), "w_in": gains["alpha"]}
    return elementwise(f"Cuba{kind}", shape, tau_mem=tau(v["beta"]), **fields)
