"""Nodes that say which layer they were, believed only where the layer's own export agrees."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch import snn
from tracetorch.nir.clock import Array, Clock
from tracetorch.nir.forms import CLAIM, DECAYS, THRESHOLDS, exact
from tracetorch.nir.graph import Graph, Node, Shape
from tracetorch.nir.raw import fill
from tracetorch.snn import LeakyIntegrator

_CLAIMS = {
    "layer": str,
    "num_neurons": int,
    "dim": int,
    "ranks": dict,
    "averaging": list,
    "reset": str,
}
_CLOSE = 1e-9  # relative; an edited parameter differs by more, a rounded one by less


def original(node: Node | Graph, clock: Clock) -> tuple[LeakyIntegrator, Shape] | None:
    """The layer that ``node`` was exported from and the shape of its input; ``None`` if it was not.

    The claim in the metadata gives the frame, the parameters come from the nodes. The layer that
    comes out is exported again: only if that gives the very nodes at hand is it the layer.
    """
    claim = _claim(node)
    if claim is None:
        return None
    parts: dict[str, Node | Graph] = node.nodes if isinstance(node, Graph) else {"mem": node}
    anchor = parts.get("mem")
    if not isinstance(anchor, Node) or "tau" not in anchor.arrays:
        return None
    shape = anchor.arrays["tau"].shape
    dim, num_neurons = claim["dim"], claim["num_neurons"]
    if not -len(shape) <= dim < 0 or shape[dim] != num_neurons:
        return None
    try:
        found = _values(parts, claim, shape, clock)
        layer = _layer(claim, found)
        again = exact(layer, shape, clock, repr(layer))
    except (KeyError, TypeError, ValueError):  # a claim that does not fit its nodes
        return None
    return (layer, shape) if _same(again, node) else None


def _claim(node: Node | Graph) -> dict[str, Any] | None:
    told = node.metadata.get(CLAIM)
    if not isinstance(told, str):
        return None
    try:
        claim = json.loads(told)
    except (ValueError, RecursionError):
        return None
    if not isinstance(claim, dict) or set(claim) != set(_CLAIMS):
        return None
    if any(type(claim[name]) is not kind for name, kind in _CLAIMS.items()):
        return None
    return claim


def _values(
    parts: dict[str, Node | Graph], claim: dict[str, Any], shape: Shape, clock: Clock
) -> dict[str, Array]:
    """Per parameter what :func:`tracetorch.nir.forms.values` gives of the layer."""
    spike = "mem" if parts["mem"].kind == "LIF" else None  # type: ignore[union-attr]
    where = {
        "alpha": ("syn", "tau"),
        "beta": ("mem", "tau"),
        "gamma": ("rec", "tau"),
        "pos_threshold": (spike, "v_threshold") if spike else ("pos_spike", "threshold"),
        "neg_threshold": (spike, "v_threshold") if spike else ("neg_spike", "threshold"),
        "pos_scale": ("pos_scale", "scale"),
        "neg_scale": ("neg_scale", "scale"),
        "rec_weight": ("rec_weight", "scale"),
        "bias": ("bias", "scale"),
    }
    found: dict[str, Array] = {}
    for name, rank in claim["ranks"].items():
        part, array = where[name]
        value = parts[part].arrays[array]  # type: ignore[union-attr]
        if value.shape != shape or rank not in (0, 1):
            raise ValueError("not this layer's")
        place: list[Any] = [0] * len(shape)
        if rank == 1:
            place[claim["dim"]] = slice(None)
        value = np.asarray(value[tuple(place)], np.float64)
        if name in DECAYS:
            value = clock.complement(value)
        found[name] = -value if name == "neg_scale" else value
    return found


def _layer(claim: dict[str, Any], found: dict[str, Array]) -> LeakyIntegrator:
    """The layer, its parameters set to the last digit."""
    kind = getattr(snn, claim["layer"]) if claim["layer"] in snn.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, LeakyIntegrator)):
        raise TypeError("not a layer")
    told: dict[str, Tensor] = {
        name: torch.from_numpy(np.array(1 - value if name in DECAYS else value))
        for name, value in found.items()
    }
    averaging = set(claim["averaging"])
    arguments: dict[str, Any] = {"dim": claim["dim"]}
    if kind is LeakyIntegrator:
        for name, value in told.items():
            arguments[f"{name}_setup"] = {"value": value}
            if name in DECAYS:
                arguments[f"{name}_setup"]["use_averaging"] = name in averaging
    else:
        arguments |= told
        readout = "pos_threshold" not in told and "neg_threshold" not in told
        for name in DECAYS:
            if name in told and not (readout and name == "beta"):
                arguments[f"{name}_ema"] = name in averaging
    if claim["reset"] != "subtract":
        arguments["reset"] = claim["reset"]
    layer: LeakyIntegrator = kind(claim["num_neurons"], **arguments)
    return fill(layer, found, decays=DECAYS, thresholds=THRESHOLDS)


def _same(one: Node | Graph, other: Node | Graph) -> bool:
    if isinstance(one, Graph) or isinstance(other, Graph):
        if not (isinstance(one, Graph) and isinstance(other, Graph)):
            return False
        return (
            set(one.edges) == set(other.edges)
            and set(one.nodes) == set(other.nodes)
            and all(_same(one.nodes[name], other.nodes[name]) for name in one.nodes)
        )
    return (
        one.kind == other.kind
        and set(one.arrays) == set(other.arrays)
        and all(_close(one.arrays[name], other.arrays[name]) for name in one.arrays)
        and {n: tuple(s) for n, s in one.settings.items()}
        == {n: tuple(s) for n, s in other.settings.items()}
    )


def _close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=_CLOSE, atol=0.0))
