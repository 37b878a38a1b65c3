"""What a ``LeakyIntegrator`` is in NIR: exactly, or in the compact form that every peer reads."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from tracetorch import snn
from tracetorch.nir.clock import Array, Clock
from tracetorch.nir.graph import Graph, Node, Shape, membrane
from tracetorch.snn import LeakyIntegrator

DECAYS = ("alpha", "beta", "gamma")
THRESHOLDS = ("pos_threshold", "neg_threshold")
WEIGHTS = ("pos_scale", "neg_scale", "rec_weight", "bias")
CLAIM = "tracetorch"  # the key in a node's metadata under which it says which layer it was
_PROBE = (-1.0, -1e-3, 0.0, 1e-3, 1.0)


def exact(layer: LeakyIntegrator, shape: Shape, clock: Clock, told: str) -> Node | Graph:
    """Nodes that compute the very spikes of ``layer``.

    ::

        syn    LI(alpha)
        mem    LI(beta), v = beta v + gain I         gain = (1 - beta) R
        p      Threshold(theta); back to mem one step later through Scale(-beta theta / gain)
        n      Scale(-1) -> Threshold(|theta|); back through Scale(beta |theta| / gain)
        rec    LI(gamma) of the output -> Scale(rec_weight); back to mem one step later
        bias   Scale(0) -> Threshold(-1), which always fires -> Scale(bias)

    The feedback is what a soft reset is: what the membrane has lost, it has lost beta times at the
    next step. With ``reset="zero"`` the membrane is a LIF itself; a membrane alone is one node.

    Args:
        layer: the layer.
        shape: the shape of its input without the batch.
        clock: seconds and steps.
        told: how messages call the layer.

    Raises:
        ValueError: the layer resets both ways to zero, or its spike function is not a step.
    """
    check_spikes(layer, told)
    check_dim(layer, shape, told)
    has = {name: getattr(layer, f"raw_{name}", None) is not None for name in _PARAMETERS}
    hard = layer.reset == "zero" and (has["pos_threshold"] or has["neg_threshold"])
    if hard and has["pos_threshold"] and has["neg_threshold"]:
        raise ValueError(
            f"{told} resets to zero from above and from below, for which NIR has no node. Use "
            "reset='subtract' or reset='none'."
        )
    v = {name: placed(layer, value, shape) for name, value in values(layer).items()}
    gain = v["beta"] if layer.beta_ema else np.ones(shape)
    nodes: dict[str, Node | Graph] = {"input": Node("Input", settings={"shape": shape})}
    edges: list[tuple[str, str]] = []

    def chain(*names: str) -> str:
        edges.extend(pairwise(names))
        return names[-1]

    current = "input"
    if has["alpha"]:
        nodes["syn"] = leaky("LI", shape, clock, v["alpha"], layer.alpha_ema)
        current = chain(current, "syn")
    enter = "mem"
    if hard and has["neg_threshold"]:  # the same neuron upside down
        nodes["mirror"] = membrane("Scale", shape, scale=-1.0)
        enter = "mirror"
    chain(current, enter)
    if enter != "mem":
        chain(enter, "mem")
    if has["bias"]:
        drive = constant(v["bias"], shape)
        nodes |= drive
        chain("input", *drive, enter)

    outputs: list[str] = []
    if hard:
        theta = v["pos_threshold"] if has["pos_threshold"] else v["neg_threshold"]
        nodes["mem"] = leaky(
            "LIF", shape, clock, v["beta"], layer.beta_ema, v_threshold=theta, v_reset=0.0
        )
    else:
        nodes["mem"] = leaky("LI", shape, clock, v["beta"], layer.beta_ema)
    for sign, side in ((1.0, "pos"), (-1.0, "neg")):
        if not has[f"{side}_threshold"]:
            continue
        theta = v[f"{side}_threshold"]
        last = "mem"
        if not hard:
            if side == "neg":
                nodes["mirror"] = membrane("Scale", shape, scale=-1.0)
                last = chain("mem", "mirror")
            nodes[f"{side}_spike"] = membrane("Threshold", shape, threshold=theta)
            last = chain(last, f"{side}_spike")
            if layer.reset == "subtract":
                back = -sign * (1 - v["beta"]) * theta / gain
                nodes[f"{side}_reset"] = membrane("Scale", shape, scale=back)
                chain(last, f"{side}_reset", "mem")
        if has[f"{side}_scale"] or side == "neg":
            scale = sign * v.get(f"{side}_scale", np.ones(shape))
            nodes[f"{side}_scale"] = membrane("Scale", shape, scale=scale)
            last = chain(last, f"{side}_scale")
        outputs.append(last)
    outputs = outputs or ["mem"]
    if has["gamma"]:
        weight = v.get("rec_weight", np.zeros(shape))
        nodes["rec"] = leaky("LI", shape, clock, v["gamma"], layer.gamma_ema)
        nodes["rec_weight"] = membrane("Scale", shape, scale=weight)
        for name in outputs:
            chain(name, "rec")
        chain("rec", "rec_weight", enter)
    nodes["output"] = Node("Output", settings={"shape": shape})
    for name in outputs:
        chain(name, "output")

    claim = {CLAIM: json.dumps(claimed(layer, shape))}
    alone = nodes["mem"]
    if isinstance(alone, Node) and edges == [("input", "mem"), ("mem", "output")]:
        return replace(alone, metadata=claim)
    return Graph(nodes, edges, claim)


def compact(
    layer: LeakyIntegrator, shape: Shape, clock: Clock, told: str, allow_hard_reset: bool
) -> Node:
    """One node, in the form that every peer reads, with the same spikes as ``layer``.

    ::

        LIF      R = 1,               threshold (1 - beta) theta      (theta where beta averages)
        CubaLIF  R = 1 / (1 - beta),  w_in = 1 / (1 - alpha)          (tau / dt, for "euler")
                 threshold theta, / (1 - alpha) where alpha averages, / (1 - beta) where beta does
        LI       R = 1, or 1 / (1 - beta) where beta does not average
        CubaLI   likewise

    Args:
        layer: the layer.
        shape: the shape of its input without the batch.
        clock: seconds and steps.
        told: how messages call the layer.
        allow_hard_reset: a layer that subtracts its threshold may be written as one that resets
            to zero, for that is what readers make of it.

    Raises:
        ValueError: the layer has a part, or a reset, that the compact nodes lack.
    """
    check_spikes(layer, told)
    check_dim(layer, shape, told)
    for part, why in (
        ("gamma", "recurrence"),
        ("neg_threshold", "spikes of two signs"),
        ("pos_scale", "a scale on its spikes"),
        ("bias", "a constant drive"),
    ):
        if getattr(layer, part) is not None:
            raise ValueError(
                f"{told} has {why} ({part}), which no single node of NIR has. Use mode='exact'."
            )
    v = {name: placed(layer, value, shape) for name, value in values(layer).items()}
    theta = v.get("pos_threshold")
    if theta is not None and layer.reset == "none":
        raise ValueError(f"{told} does not reset, the nodes of NIR do. Use mode='exact'.")
    if theta is not None and layer.reset == "subtract" and not allow_hard_reset:
        raise ValueError(
            f"{told} subtracts its threshold when it fires; whoever reads a compact file resets to "
            "zero. Use mode='exact', or train with reset='zero', or accept other spikes with "
            "allow_hard_reset=True."
        )
    spiking = {} if theta is None else {"v_reset": 0.0}
    if "alpha" not in v:
        if theta is None:
            return leaky("LI", shape, clock, v["beta"], layer.beta_ema)
        theta = theta if layer.beta_ema else v["beta"] * theta
        return leaky("LIF", shape, clock, v["beta"], True, v_threshold=theta, **spiking)
    both = {
        "tau_syn": clock.tau(v["alpha"]),
        "tau_mem": clock.tau(v["beta"]),
        "v_leak": 0.0,
    }
    if theta is None:
        w_in = 1.0 if layer.alpha_ema else 1 / v["alpha"]
        r = 1.0 if layer.beta_ema else 1 / v["beta"]
        return membrane("CubaLI", shape, **both, r=r, w_in=w_in)
    theta = theta / (v["alpha"] if layer.alpha_ema else 1.0)
    theta = theta / (v["beta"] if layer.beta_ema else 1.0)
    r, w_in = 1 / v["beta"], 1 / v["alpha"]
    return membrane("CubaLIF", shape, **both, r=r, w_in=w_in, v_threshold=theta, **spiking)


_PARAMETERS = (*DECAYS, *THRESHOLDS, *WEIGHTS)


def constant(value: Array, shape: Shape) -> dict[str, Node]:
    """A chain of nodes that gives ``value`` at every step, whatever comes in."""
    return {
        "silence": membrane("Scale", shape, scale=0.0),
        "one": membrane("Threshold", shape, threshold=-1.0),
        "bias": membrane("Scale", shape, scale=value),
    }


def leaky(
    kind: str, shape: Shape, clock: Clock, complement: Array, averages: bool, **more: Any
) -> Node:
    """A leaky node; ``complement`` is one minus its decay."""
    r = 1.0 if averages else 1 / complement
    return membrane(kind, shape, tau=clock.tau(complement), r=r, v_leak=0.0, **more)


def values(layer: LeakyIntegrator) -> dict[str, Array]:
    """What ``layer`` computes with: of decays the complement, of thresholds the magnitude."""
    found: dict[str, Array] = {}
    for name in _PARAMETERS:
        raw = getattr(layer, f"raw_{name}", None)
        if raw is None:
            continue
        raw = raw.detach().to("cpu", torch.float64)
        if name in DECAYS:
            raw = torch.sigmoid(-raw)
        elif name in THRESHOLDS:
            raw = F.softplus(raw)
        found[name] = raw.numpy()
    return found


def placed(layer: LeakyIntegrator, value: Array, shape: Shape) -> Array:
    """``value``, one for the layer or one per neuron, over the shape of the layer's input."""
    after = -neuron_dim(layer, shape) - 1
    spread = value.reshape(-1, *[1] * after) if value.ndim else value
    return np.array(np.broadcast_to(spread, shape))


def neuron_dim(layer: LeakyIntegrator, shape: Shape) -> int:
    """The neuron dimension counted from the end, where a batch does not move it."""
    return layer.dim if layer.dim < 0 else layer.dim - len(shape) - 1


def check_dim(layer: LeakyIntegrator, shape: Shape, told: str) -> None:
    """Raise where the neurons do not lie along a dimension of one sample."""
    dim = neuron_dim(layer, shape)
    if not -len(shape) <= dim < 0 or shape[dim] != layer.num_neurons:
        raise ValueError(
            f"{told} gets samples of the shape {list(shape)} behind the batch, and needs "
            f"{layer.num_neurons} neurons at dim={layer.dim}, which must not be the batch's."
        )


def claimed(layer: LeakyIntegrator, shape: Shape) -> dict[str, Any]:
    """What a node says of the layer it was: everything that its numbers do not tell."""
    return {
        "layer": next(c.__name__ for c in type(layer).__mro__ if c.__name__ in snn.__all__),
        "num_neurons": layer.num_neurons,
        "dim": neuron_dim(layer, shape),
        "ranks": {n: value.ndim for n, value in values(layer).items()},
        "averaging": [n for n in DECAYS if getattr(layer, f"{n}_ema")],
        "reset": layer.reset,
    }


def check_spikes(layer: LeakyIntegrator, told: str) -> None:
    """Raise where a spike function is not ``u > 0``: NIR knows no other."""
    probe = torch.tensor(_PROBE, dtype=torch.float64, device=layer.raw_beta.device)
    for name in ("pos_spike", "neg_spike"):
        spike = getattr(layer, name)
        if spike is None:
            continue
        with torch.no_grad():
            fired = spike(probe)
        if not torch.equal(fired.to(probe.dtype), (probe > 0).to(probe.dtype)):
            raise ValueError(
                f"{told} fires by {spike!r}, which gives {fired.tolist()} at {list(_PROBE)}. NIR "
                "knows spikes of one above the threshold and zero elsewhere."
            )
