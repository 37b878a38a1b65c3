"""Thresholds that differ from neuron to neuron, moved into the weights: some peers have but one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.nir.graph import Graph, Node
from tracetorch.nir.plain import LINEAR


def uniform_thresholds(graph: Graph) -> Graph:
    """The same spikes with one threshold in a LIF or CubaLIF, where the node before allows it.

    A neuron that is zero at rest and at reset fires alike if its input and its threshold grow by
    one factor. The factor of each neuron goes into the row of weights that feeds it: where these
    feed no one else, nothing else feeds the neuron, and, after a convolution, all neurons of a
    channel share it.

    What is made equal is the threshold as the input meets it, ``v_threshold`` over the gain
    ``r / tau``. Where time constants differ too, ``v_threshold`` differs with them: snnTorch, which
    reads the gain of one neuron for all, then refuses the file instead of misreading it.
    """
    nodes = dict(graph.nodes)
    goes = Counter(start for start, _ in graph.edges)
    comes = Counter(end for _, end in graph.edges)
    for start, end in graph.edges:
        node, feeding = nodes[end], nodes[start]
        if not (isinstance(node, Node) and isinstance(feeding, Node)):
            continue
        if node.kind not in ("LIF", "CubaLIF") or feeding.kind not in LINEAR:
            continue
        if goes[start] != 1 or comes[end] != 1:
            continue
        gain = _gain(node)
        met = node.arrays["v_threshold"] / gain
        if np.allclose(met, met.flat[0], rtol=1e-12, atol=0.0):
            continue
        rows = met.reshape(len(met), -1)
        alike = np.allclose(rows, rows[:, :1], rtol=1e-12, atol=0.0)
        if not alike or len(rows) != len(feeding.arrays["weight"]):
            continue
        goal = float(np.exp(np.log(rows[:, 0]).mean()))
        nodes[start] = _scaled(feeding, goal / rows[:, 0])
        arrays = {**node.arrays, "v_threshold": goal * gain}
        nodes[end] = Node(node.kind, arrays, node.settings, node.metadata)
    return Graph(nodes, graph.edges, graph.metadata)


def _gain(node: Node) -> NDArray[Any]:
    """How much of its input a neuron takes in, but for the time step."""
    a = node.arrays
    if node.kind == "LIF":
        return np.asarray(a["r"] / a["tau"])
    return np.asarray(a["r"] / a["tau_mem"] * (a["w_in"] / a["tau_syn"]))


def _scaled(node: Node, factors: NDArray[Any]) -> Node:
    arrays = {
        name: (value * factors.reshape(-1, *[1] * (value.ndim - 1))).astype(value.dtype)
        for name, value in node.arrays.items()
    }
    return Node(node.kind, arrays, node.settings, node.metadata)
