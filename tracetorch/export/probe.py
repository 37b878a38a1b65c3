"""Which states a model has and how their shapes follow the batch: found without computing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import ModelSnapshot, restored
from tracetorch.core.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    pytree,
)
from tracetorch.core.walk import named_modules
from tracetorch.export.explained import explained
from tracetorch.export.port import Port, port_of
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import get_states, named_neurons
from tracetorch.unrolling.inputs import call

_WITHOUT_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
BATCHES = (2, 3)  # PyTorch takes a size of 1 for fixed


@dataclass(frozen=True)
class Probed:
    """What a model does in one step, apart from values.

    Args:
        states: shape and dtype of every state, by its name.
        arguments: what each layer's ``step`` receives by name, at its path, for the number of
            dimensions and the dtype that it is called with.
    """

    states: Mapping[str, Port]
    arguments: Mapping[tuple[str, int, torch.dtype], Mapping[str, Any]]


def probe(model: nn.Module, sample: Any) -> Probed:
    """Run two steps from rest for two sizes of the batch, on tensors without values.

    Args:
        model: any module; it is as before afterwards.
        sample: what it is called with; its values are not looked at.

    Raises:
        ValueError: the model keeps something from step to step that is not a state of a neuron
            layer, or a state does not follow the batch.
    """
    layers = list(named_neurons(model))
    asked: dict[tuple[str, int, torch.dtype], None] = {}

    def asking(path: str, original: Any) -> Any:
        def arguments(ndim: int, dtype: torch.dtype) -> Any:
            asked[path, ndim, dtype] = None
            return original(ndim, dtype)

        return arguments

    seen: list[dict[str, Tensor]] = []
    for batch in BATCHES:
        # an error that a first batch does not make is about its size
        about_the_trace = _WITHOUT_VALUES if batch == BATCHES[0] else (RuntimeError,)
        with (
            restored(model, tensors=False, training=False),
            torch.no_grad(),
            FakeTensorMode() as mode,
        ):
            for path, layer in layers:
                for name in layer.active_states:
                    setattr(layer, name, None)
                vars(layer)["step_kwargs"] = asking(path, layer.step_kwargs)
            given = resized(sample, batch)
            watched = {**_without_values(model, mode), **_named_inputs(given)}
            versions = {name: tensor._version for name, tensor in watched.items()}
            before = ModelSnapshot(model)
            with explained(model, *about_the_trace):
                call(model, given)
                seen.append(get_states(model, detach=False))
                # a second step may write into what the first one left
                for name, state in seen[-1].items():
                    watched[f"the state {name}"] = state
                    versions[f"the state {name}"] = state._version
                call(model, given)
            kept = before.changes(_own_attributes)
            kept += [name for name, t in watched.items() if t._version != versions[name]]
        if kept:
            raise ValueError(
                f"one step changes {', '.join(map(repr, kept))} in {type(model).__name__}. The "
                "program would forget it, for it knows the states of neuron layers alone. Keep it "
                "as a state of an snn.Neuron, or change it outside of forward; an input is changed "
                "in a copy."
            )
    few, many = seen
    if list(few) != list(many):
        raise ValueError(f"the model has other states for a batch of {BATCHES[1]} than of 2.")
    states = {name: port_of(f"the state {name!r}", few[name], many[name], BATCHES) for name in few}
    held = dict(layers)
    with torch.no_grad():
        arguments = {key: held[key[0]].step_kwargs(*key[1:]) for key in asked}
    return Probed(states, arguments)


def resized(sample: Any, batch: int, *, steps: int | None = None) -> Any:
    """Zeros like ``sample`` ``[B, ...]`` with another batch; with ``steps``, time before it."""
    lead = (batch,) if steps is None else (steps, batch)

    def like(x: Tensor) -> Tensor:
        return torch.zeros((*lead, *x.shape[1:]), dtype=x.dtype, device=x.device)

    return pytree.tree_map_only(Tensor, like, sample)


def _own_attributes(module: nn.Module) -> frozenset[str]:
    """Attributes that a neuron layer itself changes in a step, its states among them."""
    own = frozenset({"training"})
    return own | module.transient_attributes if isinstance(module, Neuron) else own


def _without_values(model: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Put tensors without values in the place of all that the modules hold; their names."""
    found: dict[str, Tensor] = {}
    for path, module in named_modules(model):
        attributes = vars(module)
        for name, value in list(attributes.items()):
            containers = [(attributes, name, name)] if isinstance(value, Tensor) else []
            if isinstance(value, (dict, list)):
                keys = list(value) if isinstance(value, dict) else range(len(value))
                own = name in ("_buffers", "_parameters")
                containers = [
                    (value, key, str(key) if own else f"{name}[{key!r}]")  # type: ignore[misc]
                    for key in keys
                    if isinstance(value[key], Tensor)
                ]
            for container, key, told in containers:
                container[key] = mode.from_tensor(container[key])
                found[f"{path}.{told}" if path else told] = container[key]
    return found


def _named_inputs(given: Any) -> dict[str, Tensor]:
    leaves: list[tuple[Any, Tensor]] = pytree.tree_flatten_with_path(given)[0]
    return {f"the input {pytree.keystr(path)}".strip(): leaf for path, leaf in leaves}
