"""Describe a layer in its nodes' metadata, and restore it from there while the nodes are unchanged.

A hash over the nodes and the description tells whether anything was edited since; then the nodes
count, not what they once were. A forged hash can make no other harm than a wrong layer: what it
may take is bounded by the arrays in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tracetorch import snn
from tracetorch.nir.graph import LAYER, Graph, Node, Shape
from tracetorch.nir.layer_parameters import DECAYS, make_layer, neuron_dim
from tracetorch.nir.options import Clock
from tracetorch.snn import LeakyIntegrator

KEY = "tracetorch"  # under which the metadata of a node hold the description


def described(node: Node | Graph, layer: LeakyIntegrator, shape: Shape, clock: Clock) -> None:
    """Write everything that makes ``layer`` into the metadata of the node it is exported as."""
    description: dict[str, Any] = {
        "layer": next(c.__name__ for c in type(layer).__mro__ if c.__name__ in snn.__all__),
        "num_neurons": layer.num_neurons,
        "dim": neuron_dim(layer, shape),
        "averaging": " ".join(name for name in DECAYS if getattr(layer, f"{name}_ema")),
        "reset": layer.reset,
    }
    for name in layer.raw_names:
        raw = getattr(layer, name).detach().to("cpu", torch.float64).numpy()
        description[name] = raw[()]  # one value as a number: HDF5 compresses no array without axes
    description["digest"] = _digest(node, description, clock)
    node.metadata[KEY] = description


def restored(node: Node | Graph, clock: Clock) -> Node | None:
    """Return a node that holds the layer which ``node`` was exported from, if it is unchanged."""
    description = node.metadata.get(KEY)
    membrane = node.nodes.get("mem") if isinstance(node, Graph) else node
    if not isinstance(description, dict) or not isinstance(membrane, Node):
        return None
    try:
        if description["digest"] != _digest(node, description, clock):
            return None
        shape = membrane.arrays["tau"].shape
        layer = _layer(description, shape)
    # Not a description that this version writes; KeyError, OverflowError and kin.
    except (AttributeError, LookupError, ArithmeticError, RuntimeError, TypeError, ValueError):
        return None
    return Node(LAYER, settings={"shape": shape, "layer": layer})


def _layer(description: dict[str, Any], shape: Shape) -> LeakyIntegrator:
    raw = {
        name: torch.as_tensor(value, dtype=torch.float64)
        for name, value in description.items()
        if name.startswith("raw_")
    }
    name, num_neurons, dim = (description[key] for key in ("layer", "num_neurons", "dim"))
    kind = getattr(snn, name) if name in snn.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, LeakyIntegrator)):
        raise TypeError(f"{name} is no layer")
    if not -len(shape) <= dim < 0 or shape[dim] != num_neurons:
        raise ValueError(f"{num_neurons} neurons at {dim} do not fit {shape}")
    if any(value.isnan().any() for value in raw.values()):
        raise ValueError("no numbers")
    # Any legal values will do, for the raw ones are loaded over them.
    values = {name.removeprefix("raw_"): torch.full_like(value, 0.5) for name, value in raw.items()}
    averaging = description["averaging"].split()
    layer = make_layer(kind, num_neurons, dim, values, averaging, description["reset"])
    layer.to(torch.float64).load_state_dict(raw)
    return layer


def _digest(node: Node | Graph, description: dict[str, Any], clock: Clock) -> str:
    # The clock is part of it, for the nodes are the layer in one time step alone.
    words = {"clock": f"{float(clock.dt)!r} {clock.discretization}"}
    arrays = {}
    for name, value in description.items():
        if not isinstance(value, str):
            arrays[name] = np.asarray(value, np.float64)
        elif name != "digest":
            words[name] = value
    hasher = hashlib.sha256()
    for part in (*_content(Node("", arrays, words)), *_content(node)):
        hasher.update(part)
    return hasher.hexdigest()


def _content(node: Node | Graph) -> Iterator[bytes]:
    """Yield all that decides what a node computes, in an order that files keep."""
    if isinstance(node, Graph):
        yield repr((sorted(node.nodes), sorted(node.edges))).encode()
        for name in sorted(node.nodes):
            yield from _content(node.nodes[name])
    else:
        arrays = [(name, node.arrays[name]) for name in sorted(node.arrays)]
        outline = [(name, value.dtype.str, value.shape) for name, value in arrays]
        yield repr((node.kind, sorted(node.settings.items()), outline)).encode()
        yield from (value.tobytes() for _, value in arrays)
