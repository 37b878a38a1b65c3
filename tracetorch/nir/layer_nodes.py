"""Read and make neuron layers from NIR's numbers, and write them as nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.functional import softplus_inverse
from tracetorch.nir.nodes import (
    Array,
    Clock,
    Node,
    NodeGraph,
    Options,
    Shape,
    boundary,
    elementwise,
)
from tracetorch.snn import LeakyIntegrator, Neuron, SequenceLayer
from tracetorch.snn.neuron import starts_from_zero
from tracetorch.snn.parameters import SpikeFunction, sigmoid, unbounded

# sigmoid(-60) is 1e-26: nothing beside an input in float64, and still not a zero to divide by
_MIN_LOGIT = -60.0
_GRID = torch.linspace(-2, 2, 17, dtype=torch.float64)


def read_values(layer: SequenceLayer, shape: Shape) -> dict[str, Array]:
    """Return parameters in float64 over ``shape``: ``1 - decay``, and magnitudes of thresholds."""
    values = {}
    for name, constraint in layer.constraints.items():
        raw = getattr(layer, f"raw_{name}").detach().to("cpu", torch.float64)
        if constraint == sigmoid:
            raw = torch.sigmoid(-raw)
        elif constraint != unbounded:
            raw = F.softplus(raw)
        if raw.ndim:
            raw = raw.reshape(-1, *[1] * (-neuron_dim(layer, shape) - 1))
        values[name] = raw.expand(shape).numpy()
    return values


def write_values(layer: SequenceLayer, values: Mapping[str, Array]) -> None:
    """Set parameters, in the form of :func:`read_values`, to the last digit in float64."""
    layer.to(torch.float64)
    for name, value in values.items():
        raw = torch.from_numpy(np.array(value, np.float64))
        if layer.constraints[name] == sigmoid:
            raw = (torch.log1p(-raw) - torch.log(raw)).clamp(min=_MIN_LOGIT)
        elif layer.constraints[name] != unbounded:
            raw = softplus_inverse(raw)
        with torch.no_grad():
            getattr(layer, f"raw_{name}").copy_(raw)


def neuron_dim(layer: SequenceLayer, shape: Shape) -> int:
    """Return the neuron dimension counted from the end, where a batch does not move it."""
    return layer.dim if layer.dim < 0 else layer.dim - len(shape) - 1


def to_array(value: Tensor) -> NDArray[Any]:
    """Return a tensor as NIR keeps it: float64 and float32 as they are, others in float32."""
    double = value.dtype == torch.float64
    return np.array(value.detach().to("cpu", torch.float64 if double else torch.float32).numpy())


def layer_node(layer: LeakyIntegrator, shape: Shape, options: Options) -> Node | NodeGraph:
    """Convert ``layer`` for samples of ``shape``; raise where NIR has no nodes for it."""
    for spike in filter(None, (layer.pos_spike, layer.neg_spike)):
        _check_spikes(spike, layer.raw_beta.device)
    _check(layer, shape)
    values = read_values(layer, shape)
    if options.mode == "compact":
        return _compact(layer, values, shape, options)
    return _exact(layer, values, shape, options.clock)


def fire_node(layer: Neuron, shape: Shape, options: Options) -> Node | None:
    """Convert an IF, ``models.IF`` say, known by what its step gives; ``None`` for another."""
    if layer.active_states != ("mem",) or layer.constraints.keys() != {"pos_threshold"}:
        return None
    _check(layer, shape)
    theta = read_values(layer, shape)["pos_threshold"]
    # sums below the threshold, above it, and right at it
    x, mem = (value.view(-1, *[1] * len(shape)) for value in torch.cartesian_prod(_GRID, _GRID).T)
    x, mem = x * torch.from_numpy(theta), mem * torch.from_numpy(theta)
    kwargs = layer.step_kwargs(x.ndim, torch.float64).items()
    given = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in kwargs}
    with torch.no_grad():
        found = layer.step(x, mem, **given)
    fired = (x + mem > torch.from_numpy(theta)).double()
    if not all(map(torch.equal, found, (fired, (x + mem) * (1 - fired)))):
        return None
    return elementwise("IF", shape, r=1 / options.clock.dt, v_threshold=theta, v_reset=0.0)


def _check_spikes(spike: SpikeFunction, device: torch.device) -> None:
    """Raise where a spike function is not ``u > 0``: NIR knows no other."""
    # graded spikes differ far from the threshold, or near it, or where levels meet
    sizes = torch.tensor([*(10.0**n for n in range(-6, 7)), 1.5, 2.5], dtype=torch.float64)
    probe = torch.cat([-sizes, torch.zeros(1), sizes]).to(device)
    with torch.no_grad():
        fired = spike(probe)
    wrong = fired.to(probe.dtype) != (probe > 0).to(probe.dtype)
    if wrong.any():
        problem = f"fires by {spike!r}, which gives {fired[wrong][0]:g} at {probe[wrong][0]:g}"
        raise ValueError(f"{problem}. NIR knows spikes of one above the threshold.")


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


def _compact(layer: LeakyIntegrator, v: dict[str, Array], shape: Shape, options: Options) -> Node:
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
    for problem in (problem for problem, is_there in problems.items() if is_there):
        raise ValueError(f"has {problem}, which no compact node has. Use mode='exact'.")
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
