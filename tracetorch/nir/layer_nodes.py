"""Write a ``LeakyIntegrator`` as NIR nodes: exactly, or in the compact form that peers read."""

from __future__ import annotations

import numpy as np
import torch

from tracetorch.nir.graph import Graph, Node, Shape, boundary, elementwise
from tracetorch.nir.layer_metadata import described
from tracetorch.nir.layer_parameters import neuron_dim, read_values, spread
from tracetorch.nir.options import Array, Clock, WriteOptions
from tracetorch.snn import LeakyIntegrator

_PROBE = (-1.0, -1e-3, 0.0, 1e-3, 1.0)


def layer_node(layer: LeakyIntegrator, shape: Shape, options: WriteOptions) -> Node | Graph:
    """Return what computes the spikes of ``layer`` for samples of ``shape``.

    Raises:
        ValueError: NIR has no nodes for the layer, or not in this mode.
    """
    _check_spikes(layer)
    dim = neuron_dim(layer, shape)
    if not -len(shape) <= dim < 0 or shape[dim] != layer.num_neurons:
        raise ValueError(
            f"gets samples of the shape {list(shape)} behind the batch, and needs "
            f"{layer.num_neurons} neurons at dim={layer.dim}, which must not be the batch's."
        )
    values = {name: spread(layer, value, shape) for name, value in read_values(layer).items()}
    if options.mode == "compact":
        return _compact(layer, values, shape, options)
    node = _exact(layer, values, shape, options.clock)
    described(node, layer, shape, options.clock)
    return node


def _exact(
    layer: LeakyIntegrator, values: dict[str, Array], shape: Shape, clock: Clock
) -> Node | Graph:
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
    thresholds = [side for side in ("pos", "neg") if f"{side}_threshold" in values]
    hard = layer.reset == "zero" and bool(thresholds)
    if hard and len(thresholds) == 2:
        raise ValueError(
            "resets to zero from above and from below, for which NIR has no node. Use "
            "reset='subtract' or reset='none'."
        )
    graph = Graph({"input": boundary("Input", shape)})

    def scale(name: str, value: Array | float, *sources: str) -> str:
        return graph.add(name, elementwise("Scale", shape, scale=value), *sources)

    drive = ["input"]
    if "alpha" in values:
        synapse = _leaky(shape, clock, values["alpha"], layer.alpha_ema)
        drive = [graph.add("syn", synapse, "input")]
    if "bias" in values:
        drive.append(graph.add_constant(values["bias"], shape, "input"))
    if hard and thresholds == ["neg"]:  # the same neuron upside down
        drive = [scale("mirror", -1.0, *drive)]
    entrance = "mirror" if drive == ["mirror"] else "mem"
    membrane = _leaky(shape, clock, values["beta"], layer.beta_ema)
    if hard:
        theta = values[f"{thresholds[0]}_threshold"]
        spiking = elementwise("LIF", shape, v_threshold=theta, v_reset=0.0)
        membrane = Node("LIF", membrane.arrays | spiking.arrays)
    graph.add("mem", membrane, *drive)

    gain = values["beta"] if layer.beta_ema else np.ones(shape)
    outputs = []
    for side in thresholds:
        sign, theta = (1.0 if side == "pos" else -1.0), values[f"{side}_threshold"]
        last = "mem"
        if not hard:
            if side == "neg":
                last = scale("mirror", -1.0, last)
            spike = elementwise("Threshold", shape, threshold=theta)
            last = graph.add(f"{side}_spike", spike, last)
            if layer.reset == "subtract":
                reset = scale(f"{side}_reset", -sign * (1 - values["beta"]) * theta / gain, last)
                graph.edges.append((reset, "mem"))
        if side == "neg" or f"{side}_scale" in values:
            size = values.get(f"{side}_scale", np.ones(shape))
            last = scale(f"{side}_scale", sign * size, last)
        outputs.append(last)
    outputs = outputs or ["mem"]
    if "gamma" in values:
        trace = _leaky(shape, clock, values["gamma"], layer.gamma_ema)
        back = graph.add("rec", trace, *outputs)
        back = scale("rec_weight", values.get("rec_weight", np.zeros(shape)), back)
        graph.edges.append((back, entrance))
    graph.add("output", boundary("Output", shape), *outputs)
    return membrane if len(graph.nodes) == 3 else graph


def _compact(
    layer: LeakyIntegrator, values: dict[str, Array], shape: Shape, options: WriteOptions
) -> Node:
    """Write a layer as one node, in the form that every peer reads.

    ::

        LIF      R = 1,               threshold (1 - beta) theta      (theta where beta averages)
        CubaLIF  R = 1 / (1 - beta),  w_in = 1 / (1 - alpha)          (tau / dt, for "euler")
                 threshold theta, / (1 - alpha) where alpha averages, / (1 - beta) where beta does
        LI       R = 1, or 1 / (1 - beta) where beta does not average
        CubaLI   likewise
    """
    for part, what in (
        ("gamma", "recurrence"),
        ("neg_threshold", "spikes of two signs"),
        ("pos_scale", "a scale on its spikes"),
        ("bias", "a constant drive"),
    ):
        if part in values:
            raise ValueError(
                f"has {what} ({part}), which no single node of NIR has. Use mode='exact'."
            )
    beta, theta = values["beta"], values.get("pos_threshold")
    spiking = theta is not None
    if spiking and layer.reset == "none":
        raise ValueError("does not reset, the nodes of NIR do. Use mode='exact'.")
    if spiking and layer.reset == "subtract" and not options.allow_hard_reset:
        raise ValueError(
            "subtracts its threshold when it fires; whoever reads a compact file resets to zero. "
            "Use mode='exact', or train with reset='zero', or accept other spikes with "
            "allow_hard_reset=True."
        )
    # A gain of one, or one that undoes 1 - decay; the threshold makes up for the one peers expect.
    gains: dict[str, Array] = {}
    for name in ("alpha", "beta"):
        if name in values:
            averages = bool(getattr(layer, f"{name}_ema"))
            unit = (name == "beta" and "alpha" not in values) if spiking else averages
            gains[name] = np.ones(shape) if unit else 1 / values[name]
            if theta is not None and unit != averages:
                theta = theta * values[name] if unit else theta / values[name]
    fields = {"r": gains["beta"], "v_leak": 0.0}
    if theta is not None:
        fields |= {"v_threshold": theta, "v_reset": 0.0}
    kind = "LIF" if spiking else "LI"
    if "alpha" not in values:
        return elementwise(kind, shape, tau=options.clock.tau(beta), **fields)
    fields |= {"tau_syn": options.clock.tau(values["alpha"]), "w_in": gains["alpha"]}
    return elementwise(f"Cuba{kind}", shape, tau_mem=options.clock.tau(beta), **fields)


def _leaky(shape: Shape, clock: Clock, complement: Array, averages: bool) -> Node:
    r = np.ones(shape) if averages else 1 / complement
    return elementwise("LI", shape, tau=clock.tau(complement), r=r, v_leak=0.0)


def _check_spikes(layer: LeakyIntegrator) -> None:
    """Raise where a spike function is not ``u > 0``: NIR knows no other."""
    probe = torch.tensor(_PROBE, dtype=torch.float64, device=layer.raw_beta.device)
    for spike in (layer.pos_spike, layer.neg_spike):
        if spike is None:
            continue
        with torch.no_grad():
            fired = spike(probe)
        if not torch.equal(fired.to(probe.dtype), (probe > 0).to(probe.dtype)):
            raise ValueError(
                f"fires by {spike!r}, which gives {fired.tolist()} at {list(_PROBE)}. NIR knows "
                "spikes of one above the threshold and zero elsewhere."
            )
