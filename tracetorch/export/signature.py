"""Find the states and step kwargs of one step on fake tensors, which have no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import Snapshot, restored
from tracetorch.core.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    pytree,
    version_of,
    versions_of,
)
from tracetorch.core.walk import join_path, named_modules
from tracetorch.export.tensor_spec import TensorSpec, infer_spec
from tracetorch.export.trace_errors import explain_trace_errors
from tracetorch.snn.module import TTModule, layer_label
from tracetorch.snn.noise import Noise
from tracetorch.snn.sequence_layer import SequenceLayer, StepKwargs, transient_attributes_of
from tracetorch.snn.states import get_states, named_holders
from tracetorch.unrolling.inputs import call

_VALUE_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)
BATCHES = (2, 3)  # PyTorch takes a size of 1 for fixed


@dataclass(frozen=True)
class StepSignature:
    """States and step kwargs of one time step of a model.

    Args:
        states: shape and dtype of every state, by its name.
        initial: values that states start from where it is not zero, by name; they broadcast.
        step_kwargs: step kwargs of each layer, by its path and the number of dimensions and the
            dtype that it is called with.
    """

    states: Mapping[str, TensorSpec]
    initial: Mapping[str, Tensor]
    step_kwargs: Mapping[tuple[str, int, torch.dtype], Mapping[str, Any]]

    def initial_states(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Return every state before the first step, by name."""
        return {
            name: spec.full(batch, self.initial.get(name, 0.0), device)
            for name, spec in self.states.items()
        }


_FORGOTTEN = (
    "The program would forget it, for it knows states alone. Keep it as a state of an snn.Neuron, "
    "or declare it by memory() of an snn.TTModule, or change it outside of forward; an input is "
    "changed in a copy."
)


def step_signature(model: nn.Module, sample: Any, *, free_batch: bool = True) -> StepSignature:
    """Run two steps from rest for two batch sizes on fake tensors, and compare the states.

    Args:
        model: any module; it is restored afterwards.
        sample: inputs of one step; their values do not matter.
        free_batch: whether the program is to have one, for errors.

    Raises:
        ValueError: the model keeps something from step to step that is not a state of a neuron
            layer, or a state does not follow the batch.
    """
    layers = dict(named_holders(model))
    _check_seeds(layers)
    calls: dict[tuple[str, int, torch.dtype], None] = {}

    states_by_batch: list[dict[str, Tensor]] = []
    for batch in BATCHES:
        # An error that the first batch size does not cause is about the size of the batch.
        trace_errors = _VALUE_ERRORS if batch == BATCHES[0] else (RuntimeError,)
        with (
            restored(model, tensors=False, training=False),
            torch.no_grad(),
            FakeTensorMode() as mode,
            ExitStack() as overrides,
        ):
            for path, layer in layers.items():
                for name in layer.active_states:
                    setattr(layer, layer._attribute_of(name), None)
                if isinstance(layer, SequenceLayer):
                    replacement = _noting(calls, path, layer.step_kwargs)
                    overrides.enter_context(layer.override_step_kwargs(replacement))
            inputs = resized(sample, batch)
            # A tensor counts its writes in place: what the step writes to shows in its version.
            watched = {**replace_tensors(model, mode.from_tensor), **_named_inputs(inputs)}
            versions = dict(zip(watched, versions_of(watched.values()), strict=True))
            before = Snapshot(model)
            with explain_trace_errors(model, *trace_errors, free_batch=free_batch):
                call(model, inputs)
                states_by_batch.append(get_states(model, detach=False))
                # A second step may write into the states that the first one left.
                for name, state in states_by_batch[-1].items():
                    watched[f"the state {name}"] = state
                    versions[f"the state {name}"] = version_of(state)
                call(model, inputs)
            changed = list(before.changes(transient_attributes_of))
            changed += [name for name, t in watched.items() if version_of(t) != versions[name]]
        if changed:
            raise ValueError(
                f"one step changes {', '.join(map(repr, changed))} in {type(model).__name__}. "
                f"{_FORGOTTEN}"
            )
    states = _specs(*states_by_batch)
    # Outside of the fake mode: these tensors have values, the constants of the program.
    with torch.no_grad():
        step_kwargs = {
            key: cast(SequenceLayer, layers[key[0]]).step_kwargs(*key[1:]) for key in calls
        }
    return StepSignature(states, _initial_values(layers, states), step_kwargs)


def _check_seeds(layers: Mapping[str, TTModule]) -> None:
    """Raise where noise starts from a number that a program cannot draw."""
    for path, layer in layers.items():
        if isinstance(layer, Noise) and "initial_position" not in layer._buffers:
            raise ValueError(
                f"{layer_label(layer, path)} has no seed: every sequence draws where its noise "
                "starts, which a program cannot. Build it with seed=; a caller of the program may "
                "start from any other position."
            )


def _specs(few: Mapping[str, Tensor], many: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Return the specs of the states, from those that two batch sizes have left."""
    if list(few) != list(many):
        raise ValueError(f"the model has other states for a batch of {BATCHES[1]} than of 2.")
    return {name: infer_spec(f"the state {name!r}", few[name], many[name], BATCHES) for name in few}


def _noting(
    calls: dict[tuple[str, int, torch.dtype], None], path: str, original: StepKwargs
) -> StepKwargs:
    """Return step kwargs that note how they are called."""

    def step_kwargs(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        calls[path, ndim, dtype] = None
        return original(ndim, dtype)

    return step_kwargs


def _initial_values(
    layers: Mapping[str, TTModule], states: Mapping[str, TensorSpec]
) -> dict[str, Tensor]:
    """Return what the states start from that do not start from zero, by name."""
    return {
        join_path(path, name): _initial_value(layer, name, states[join_path(path, name)])
        for path, layer in layers.items()
        for name in layer.active_states
        if join_path(path, name) in states and getattr(layer, f"initial_{name}", None) is not None
    }


def _initial_value(layer: TTModule, name: str, spec: TensorSpec) -> Tensor:
    """Return what a state starts from, of size 1 in every dimension but the neurons'."""
    if not isinstance(layer, SequenceLayer):  # a memory
        value: Tensor = getattr(layer, f"initial_{name}")
        return value.detach().clone()
    sizes = [1] * len(spec.shape)
    sizes[layer.dim] = layer.num_neurons
    like = spec.full(1)
    return layer.initial_state(name, torch.Size(sizes), like.dtype, like.device)


def resized(sample: Any, batch: int, *, steps: int | None = None) -> Any:
    """Return zeros like ``sample`` ``[B, ...]`` of another batch size, and ``steps`` of time."""
    lead = (batch,) if steps is None else (steps, batch)

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros((*lead, *x.shape[1:]), dtype=x.dtype, device=x.device)

    return pytree.tree_map_only(Tensor, zeros, sample)


def replace_tensors(
    model: nn.Module, replacement_of: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Replace every tensor in the modules' attributes by another; return the new ones by name."""
    replaced: dict[str, Tensor] = {}
    for path, module in named_modules(model):
        attributes = vars(module)
        for name, value in list(attributes.items()):
            # Where each tensor is held, and its name: the attributes, or a dict or list in them.
            places = [(attributes, name, name)] if isinstance(value, Tensor) else []
            if isinstance(value, (dict, list)):
                keys = list(value) if isinstance(value, dict) else range(len(value))
                registered = name in ("_buffers", "_parameters")
                places = [
                    (value, key, str(key) if registered else f"{name}[{key!r}]")  # type: ignore[misc]
                    for key in keys
                    if isinstance(value[key], Tensor)
                ]
            for container, key, label in places:
                container[key] = replacement_of(container[key])
                replaced[join_path(path, label)] = container[key]
    return replaced


def _named_inputs(inputs: Any) -> dict[str, Tensor]:
    leaves: list[tuple[Any, Tensor]] = pytree.tree_flatten_with_path(inputs)[0]
    return {f"the input {pytree.keystr(path)}".strip(): leaf for path, leaf in leaves}
