"""Read and make neuron layers from NIR's numbers; describe them in metadata, and restore them.

The metadata of a node describe the layer that was written, with a digest of both; where either was
edited, the node counts.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from tracetorch import neurons, snn
from tracetorch.functional import softplus_inverse
from tracetorch.nir.node_graph import LAYER, Node, NodeGraph, Shape, driven
from tracetorch.nir.options import Array, Clock
from tracetorch.snn import LeakyIntegrator, Neuron, SequenceLayer
from tracetorch.snn.parameters import bounded_sigmoid, is_decay, named_bound, sigmoid, unbounded

KEY = "tracetorch"  # under which the metadata of a node hold the description
DECAYS = ("alpha", "beta", "gamma")
# sigmoid(-60) is 1e-26: nothing beside an input in float64, and still not a zero to divide by
_MIN_LOGIT = -60.0


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


def make_layer(
    kind: type[LeakyIntegrator],
    num_neurons: int,
    dim: int,
    values: Mapping[str, Array],
    averaging: Collection[str],
    reset: str,
) -> LeakyIntegrator:
    """Construct a layer in float64 with ``values`` in the form of :func:`read_values`."""
    options: dict[str, Any] = {"dim": dim, "reset": reset}
    for name, value in values.items():
        # A constructor rounds to the default dtype: take any legal value here, and write over it.
        options[name] = torch.full(value.shape, 0.5)
        setup = options[f"{name}_setup"] = {"value": options[name]}
        if name in DECAYS:
            options[f"{name}_ema"] = setup["use_averaging"] = name in averaging
    accepted = inspect.signature(kind).parameters
    layer = kind(num_neurons, **{name: options[name] for name in options if name in accepted})
    # Not every constructor has all of these as arguments; they may be assigned on any layer.
    for name in DECAYS:
        setattr(layer, f"{name}_ema", name in averaging)
    layer.reset = reset
    write_values(layer, values)
    return layer


def neuron_dim(layer: SequenceLayer, shape: Shape) -> int:
    """Return the neuron dimension counted from the end, where a batch does not move it."""
    return layer.dim if layer.dim < 0 else layer.dim - len(shape) - 1


def to_array(value: Tensor) -> NDArray[Any]:
    """Return a tensor as NIR keeps it: float64 and float32 as they are, others in float32."""
    double = value.dtype == torch.float64
    return np.array(value.detach().to("cpu", torch.float64 if double else torch.float32).numpy())


def describe(node: Node | NodeGraph, layer: Neuron, shape: Shape, clock: Clock) -> None:
    """Write what makes ``layer`` again into the metadata of its node, if anything of ours does."""
    kind: type[Neuron]
    if isinstance(layer, LeakyIntegrator):
        kind = next(c for c in type(layer).__mro__ if getattr(snn, c.__name__, None) is c)
    elif type(layer) is getattr(neurons, type(layer).__name__, None):
        kind = type(layer)
    else:
        return
    if layer.step is not kind.step:
        return
    # A LeakyIntegrator has the parts that it is given; any other class decides on them itself.
    if kind is not LeakyIntegrator and kind(1).constraints.keys() != layer.constraints.keys():
        return
    description: dict[str, Any] = {
        "layer": kind.__name__,
        "num_neurons": layer.num_neurons,
        "dim": neuron_dim(layer, shape),
    }
    if isinstance(layer, LeakyIntegrator):
        description |= {
            "averaging": " ".join(name for name in DECAYS if getattr(layer, f"{name}_ema")),
            "reset": layer.reset,
        }
    else:
        numbers = {name: getattr(layer, name) for name in layer._options}
        description |= {name: each for name, each in numbers.items() if type(each) in (int, float)}
        decays = {name: c.name for name, c in layer.constraints.items() if is_decay(c)}
        description |= {f"constraint_{name}": text for name, text in decays.items()}
    # on the CPU, where the file is read: another device may differ in the last place
    raw = {
        name: getattr(layer, f"raw_{name}").detach().to("cpu", torch.float64)
        for name in layer.constraints
    }
    # one value as a number: HDF5 compresses no array without axes
    description |= {f"raw_{name}": value.numpy()[()] for name, value in raw.items()}
    again = _made(description)
    for name, value in raw.items():
        made = again._constrained(name, getattr(again, f"raw_{name}"))
        if not torch.equal(layer._constrained(name, value), made):
            return
    node.metadata[KEY] = {**description, "digest": digest(node, description, clock)}


def restored(node: Node | NodeGraph, clock: Clock) -> Node | None:
    """Return a node that holds the layer which ``node`` was exported from, if it is unchanged."""
    description = node.metadata.get(KEY)
    if not isinstance(description, dict) or not {"layer", "digest"} <= description.keys():
        return None
    try:
        if description["digest"] != digest(node, description, clock):
            return None
    except (TypeError, ValueError):  # what no description of ours holds
        return None
    graph = node if isinstance(node, NodeGraph) else NodeGraph({"": node})
    inside = [part for part in graph.nodes.values() if isinstance(part, Node)]
    arrays = next(part.arrays for part in inside if part.arrays)
    shape = next(iter(arrays.values())).shape
    # a constant is made of spikes too
    names = driven(graph.nodes, graph.edges) or {""}
    spikes = any(part.spikes for part in (graph.nodes[n] for n in names) if isinstance(part, Node))
    layer = _made(description)
    return Node(LAYER, arrays, {"shape": shape, "layer": layer, "spikes": spikes})


def _made(description: dict[str, Any]) -> Neuron:
    """Return the layer that a description is of."""
    name, num_neurons, dim = (description[key] for key in ("layer", "num_neurons", "dim"))
    raw = {
        name: torch.as_tensor(value, dtype=torch.float64)
        for name, value in description.items()
        if name.startswith("raw_")
    }
    # Any legal values will do, for the raw ones are loaded over them.
    values = {name.removeprefix("raw_"): np.full(v.shape, 0.5) for name, v in raw.items()}
    if name in snn.__all__:
        averaging = description["averaging"].split()
        layer: Neuron = make_layer(
            getattr(snn, name), num_neurons, dim, values, averaging, description["reset"]
        )
        layer.load_state_dict(raw)
        return layer
    kind: type[Neuron] = getattr(neurons, name)
    given = {n: torch.from_numpy(v).to(torch.get_default_dtype()) for n, v in values.items()}
    known = inspect.signature(kind).parameters.keys() - {"num_neurons", "dim"}
    given |= {name: value for name, value in description.items() if name in known}
    layer = kind(num_neurons, dim=dim, **given)
    decays = {n: description.get(f"constraint_{n}") for n in layer.constraints}
    for name, text in decays.items():  # the constructor has lowered a bound to what it was given
        if isinstance(text, str):
            low = named_bound(text)
            constraint = sigmoid if low is None else bounded_sigmoid(low)
            layer._declared.constrain(name, constraint)
    state = OrderedDict(raw)
    texts = {n: text for n, text in decays.items() if isinstance(text, str)}
    state._metadata = {"": {"constraints": texts}}  # type: ignore[attr-defined]  # PyTorch's place
    layer.to(torch.float64).load_state_dict(state)
    return layer


def digest(node: Node | NodeGraph, description: dict[str, Any], clock: Clock) -> str:
    """Return a hash over all that decides what a node computes, the description and the clock."""
    # The nodes are the layer in one time step alone.
    signed = {**description, "digest": [float(clock.dt), clock.discretization]}
    content = asdict(replace(node, metadata=signed))
    text = json.dumps(content, sort_keys=True, default=_array_digest)
    return hashlib.sha256(text.encode()).hexdigest()


def _array_digest(value: Any) -> list[Any]:
    array = np.asarray(value)
    return [array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
