"""Describe a layer in its nodes' metadata, and restore it from there while the nodes are unchanged.

A digest over the nodes and the description tells whether either was edited; then the nodes count,
not what they once were. Forging it makes another layer, but takes no more memory than the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from tracetorch import snn
from tracetorch.nir.graph import LAYER, Graph, Node, Shape
from tracetorch.nir.layer_parameters import DECAYS, make_layer, neuron_dim
from tracetorch.nir.options import Clock
from tracetorch.snn import LeakyIntegrator

KEY = "tracetorch"  # under which the metadata of a node hold the description


def describe(node: Node | Graph, layer: LeakyIntegrator, shape: Shape, clock: Clock) -> None:
    """Write all that makes ``layer`` into the metadata of the node that it is exported as."""
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
    node.metadata[KEY] = {**description, "digest": digest(node, description, clock)}


def restored(node: Node | Graph, clock: Clock) -> Node | None:
    """Return a node that holds the layer which ``node`` was exported from, if it is unchanged."""
    description = node.metadata.get(KEY)
    membrane = node.nodes.get("mem") if isinstance(node, Graph) else node
    if not isinstance(description, dict) or not isinstance(membrane, Node):
        return None
    try:
        if description["digest"] != digest(node, description, clock):
            return None
        shape = membrane.arrays["tau"].shape
        settings = {"shape": shape, "layer": _layer(description, shape)}
        return Node(LAYER, membrane.arrays, settings)
    # Not a description that we write: LookupError and ArithmeticError are KeyError and kin.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None


def _layer(description: dict[str, Any], shape: Shape) -> LeakyIntegrator:
    name, num_neurons, dim = (description[key] for key in ("layer", "num_neurons", "dim"))
    kind = getattr(snn, name) if name in snn.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, LeakyIntegrator)):
        raise TypeError(f"{name} is no layer")
    raw = {
        name: torch.as_tensor(value, dtype=torch.float64)
        for name, value in description.items()
        if name.startswith("raw_")
    }
    bounded = -len(shape) <= dim < 0 and shape[dim] == num_neurons
    if not bounded or any(value.isnan().any() for value in raw.values()):
        raise ValueError(f"{num_neurons} neurons at {dim} do not fit {shape}, or are no numbers")
    # Any legal values will do, for the raw ones are loaded over them.
    values = {name.removeprefix("raw_"): torch.full_like(value, 0.5) for name, value in raw.items()}
    averaging = description["averaging"].split()
    layer = make_layer(kind, num_neurons, dim, values, averaging, description["reset"])
    layer.to(torch.float64).load_state_dict(raw)
    return layer


def digest(node: Node | Graph, description: dict[str, Any], clock: Clock) -> str:
    """Return a hash over all that decides what a node computes, the description and the clock."""
    # The nodes are the layer in one time step alone.
    signed = {**description, "digest": [float(clock.dt), clock.discretization]}
    content = asdict(replace(node, metadata=signed))
    text = json.dumps(content, sort_keys=True, default=_array_digest)
    return hashlib.sha256(text.encode()).hexdigest()


def _array_digest(value: Any) -> list[Any]:
    array = np.asarray(value)
    return [array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
