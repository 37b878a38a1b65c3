"""Describe small networks for their page: layers, their printed loops, and the data they learn.

Neurons run the loops that are printed of their steps, on raw parameters: a step constrains them
first, so that the printed derivative is that of what PyTorch trains. Data of two features that are
constant in time, or a spike each, lie in a plane, on which the page shows what the network says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch
from torch import Tensor, nn

from tracetorch.plot.firing_lines import FiringLine, silent_step, smallest_shape
from tracetorch.plot.playground_data import (
    Sources,
    check_layer,
    described_call,
    described_literals,
    is_spiking,
    page_plan,
    spike_slope,
    start_of,
    the_spike,
)
from tracetorch.snn.model_graph import read_model
from tracetorch.snn.neuron import Neuron, has_step, spike_functions
from tracetorch.snn.parameters import sigmoid

_NDIM = 2  # of the tensor of one step, [B, features]
_ALLOWED = "nn.Linear and neuron layers with a step"
TRIES: list[tuple[str, str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "network" / "tries.json").read_text("utf-8")
)
"""Things to try: the name of a link, what there is to see, and settings as in the address."""


@dataclass(frozen=True)
class RawStep:
    """A step that constrains its raw parameters first, so that its gradients are theirs."""

    step: Callable[..., tuple[Any, ...]]  # of the neuron
    # of the parameters, by name: the function, and the parameter that it lies above
    constraints: tuple[tuple[str, Callable[..., Tensor], str | None], ...]

    def __call__(self, *tensors: Any, **kwargs: Any) -> tuple[Any, ...]:
        raw = dict(kwargs)
        constraints = {name: (function, above) for name, function, above in self.constraints}

        def value(name: str) -> Tensor:
            function, above = constraints[name]
            return function(raw[name], *([] if above is None else [value(above)]))

        return self.step(*tensors, **{**kwargs, **{name: value(name) for name in constraints}})


def describe_network(
    model: nn.Sequential, sources: Sources, *, trains: bool
) -> list[dict[str, Any]]:
    """Return what the page must know of each layer; its printed loops go into ``sources``."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Neuron))]
    if not any(isinstance(layer, Neuron) for layer in layers):
        raise ValueError(f"save_playground: the network has no neurons. A page shows {_ALLOWED}.")
    check_layer("save_playground: the network", model)
    first = layers[0]
    size = first.in_features if isinstance(first, nn.Linear) else first.num_neurons
    given = next(iter((*model.parameters(), *model.buffers()))).new_zeros(1, size)
    described: list[dict[str, Any]] = []
    owners: dict[Tensor, str] = {}
    for node in read_model(model, given).chain():
        path, module = node.path, node.module
        where = f"save_playground: {node.place}"
        if type(module) is not nn.Linear and not (isinstance(module, Neuron) and has_step(module)):
            raise ValueError(f"{where} is none that a page can run: {_ALLOWED}.")
        for name, each in module.named_parameters(prefix=path):
            if each in owners:
                raise ValueError(
                    f"{where} shares {name!r} with {owners[each]!r}, and a page would train two of "
                    "them. Copy it."
                )
            owners[each] = name
        if isinstance(module, Neuron):
            check_layer(where, module)
            described.append(_neuron(where, path, module, sources, trains))
            continue
        tensors = [_tensor(name, each) for name, each in module.named_parameters()]
        inputs, outputs = module.in_features, module.out_features
        names = {"kind": "linear", "name": path, "title": f"Linear({inputs}, {outputs})"}
        described.append({**names, "inputs": inputs, "size": outputs, "tensors": tensors})
    return described


def _tensor(name: str, values: Tensor) -> dict[str, Any]:
    numbers = values.detach().cpu().double().flatten()
    return {"name": name, "values": numbers.tolist(), "learned": values.requires_grad}


def _neuron(where: str, path: str, layer: Neuron, sources: Sources, trains: bool) -> dict[str, Any]:
    cell = layer.cell
    if cell.dim_from_end(_NDIM) != -1:
        raise ValueError(f"{where} has its neurons in dimension {cell.dim}, and a page has [B, N].")
    constraints = cell.constraints
    kwargs = layer.step_kwargs(_NDIM, torch.float64)
    options = [n for n, v in kwargs.items() if isinstance(v, Tensor) and n not in constraints]
    raw = {name: getattr(layer, f"raw_{name}") for name in constraints}
    raw |= {name: kwargs[name] for name in options}
    doubled = {name: value.detach().double().cpu() for name, value in raw.items()}
    step = RawStep(cell.step, tuple((n, c.value, c.above) for n, c in constraints.items()))
    plan = page_plan(where, replace(cell, step=step), _NDIM, {**kwargs, **doubled})
    places = sources.add(plan) if trains else [sources.add_forward(plan)]
    shown = [name for name in cell.active if name != "prev_output"]
    learns = trains and is_spiking(layer)
    return {
        "kind": "neuron",
        "name": path,
        "title": repr(layer).partition("\n")[0],
        "inputs": layer.num_neurons,
        "size": layer.num_neurons,
        "states": list(cell.active),
        "shown": shown[0],
        "spiking": is_spiking(layer),
        "start": [start_of(layer, name) for name in cell.active],
        "forward": places[0],
        "backward": places[-1],
        "literals": described_literals(plan),
        "call": described_call(cell, []),
        # of which a half-life is the whole value
        "decays": [name for name, each in constraints.items() if each == sigmoid],
        **(_spikes(where, layer, step, {**kwargs, **doubled}, sources) if learns else {}),
        "tensors": [
            _tensor(f"raw_{name}" if name in constraints else name, raw[name])
            for name in plan.program.params
        ],
    }


def _spikes(
    where: str, layer: Neuron, step: RawStep, kwargs: dict[str, Any], sources: Sources
) -> dict[str, Any]:
    """Print what spike functions are given, and the derivative that stands in for them."""
    cell, names = layer.cell, tuple(spike_functions(layer))
    zeros = torch.zeros(smallest_shape(cell), dtype=torch.float64)
    states = [zeros if name in cell.active else None for name in cell.states]
    _, distances = silent_step(step, names, (zeros, *states), kwargs)
    given = []
    for call in range(len(distances)):
        moved = replace(step, step=FiringLine(cell.step, names, call, alone=True))
        plan = page_plan(where, replace(cell, step=moved), _NDIM, kwargs)
        given.append([sources.add_forward(plan), described_literals(plan)])
    bumps = [spike_slope(where, cell, spike, sources) for spike in the_spike(names, kwargs)]
    return {"distances": given, "bump": bumps[0]} if bumps else {"distances": [], "bump": None}


def network_tries(networks: Collection[str], sets: Collection[str]) -> list[Any]:
    """Return what there is to try as links, of networks and data by their names."""
    return [
        {"name": name, "text": text, "fragment": urlencode(settings)}
        for name, text, settings in TRIES
        if settings["net"] in networks and settings["data"] in sets
    ]


def describe_data(
    data: object, held_out: object, inputs: int, classes: int
) -> list[dict[str, Any]]:
    """Return the data sets of a page, a pair or several by name, in their order."""
    named, others = (
        each if isinstance(each, Mapping) else {"data": each} for each in (data, held_out)
    )
    if held_out is None:
        others = {}
    unknown = [name for name in others if name not in named]
    if unknown:
        raise ValueError(
            f"save_playground: held_out has {unknown[0]!r}, and data have {list(named)}. Give "
            "both the same names."
        )
    found = []
    for name, pair in named.items():
        described = _samples("data", name, pair, inputs, classes)
        if name in others:
            described["held"] = _samples("held_out", name, others[name], inputs, classes)
        found.append(described)
    return found


def _samples(argument: str, name: Any, pair: Any, inputs: int, classes: int) -> dict[str, Any]:
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not isinstance(name, str) or not is_pair or not all(isinstance(t, Tensor) for t in pair):
        raise TypeError(
            f"save_playground: {argument} must be a pair (x, labels) of tensors, or a mapping from "
            f"names to pairs, got {name!r}: {type(pair).__name__}."
        )
    x, labels = (each.detach().cpu() for each in pair)
    where = f"save_playground: {argument} {name!r}:"
    fits = x.ndim == 3 and x.shape[-1] == inputs and x.numel() and x.is_floating_point()
    whole = not (labels.is_floating_point() or labels.dtype is torch.bool)
    known = whole and bool(((labels >= 0) & (labels < classes)).all())
    if not (fits and x.isfinite().all() and known and labels.shape == x.shape[1:2]):
        raise ValueError(
            f"{where} x must be finite floats [T, B, {inputs}], and labels integers [B] from 0 to "
            f"{classes - 1}, the network's outputs, got {x.dtype} {list(x.shape)} and "
            f"{labels.dtype} {list(labels.shape)}."
        )
    form, numbers = _form(x.double())
    flat = {"numbers": numbers.flatten().tolist(), "labels": labels.tolist()}
    return {"name": name, "steps": len(x), "form": form, **flat}


def _form(x: Tensor) -> tuple[str, Tensor]:
    """Return the shortest form of sequences ``[T, B, F]``: numbers, times of a spike, or all."""
    if (x == x[0]).all():
        return "values", x[0]
    if ((x == 0) | (x == 1)).all() and (x.sum(0) == 1).all():
        return "times", x.argmax(0)
    return "sequences", x.permute(1, 2, 0)
