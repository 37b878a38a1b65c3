"""Fold batch norms, and thresholds that differ from neuron to neuron, into the weights before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.nir.layer_values import to_array
from tracetorch.nir.node_graph import LINEAR, Node, NodeGraph
from tracetorch.snn.norm_folding import norm_affine


def norm_arrays(norm: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the factor and the summand per channel of a batch norm in eval mode."""
    affine = None if norm.training else norm_affine(norm)
    if affine is None:
        advice = "Call model.eval() before the export; it needs track_running_stats=True."
        raise ValueError(f"takes its statistics from the batch. {advice}")
    scale, shift = (to_array(each.to(norm.running_mean.dtype)) for each in affine)
    return scale, shift


def fold_norm(node: Node, scale: NDArray[Any], shift: NDArray[Any]) -> Node:
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
