"""Find the states and step kwargs of one step on fake tensors, which have no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import WEIGHT_HOOKS
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    pytree,
)
from tracetorch.core.walk import join_path, named_modules
from tracetorch.export.program import TensorSpec, explain_trace_errors
from tracetorch.snn.module import layer_label
from tracetorch.snn.noise import Noise
from tracetorch.snn.sequence_layer import SequenceLayer, StepKwargs
from tracetorch.snn.states import get_states, named_holders, set_states
from tracetorch.unrolling.inputs import call

_VALUE_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)
BATCHES = (2, 3)  # PyTorch takes a size of 1 for fixed


@dataclass(frozen=True)
class StepSignature:
    """States and step kwargs of one time step of a model."""

    states: Mapping[str, TensorSpec]  # shape and dtype of every state, by its name
    # values that states start from where it is not zero, by name; they broadcast
    initial: Mapping[str, Tensor]
    # step kwargs of each layer, by its path and the number of dimensions and the dtype that it is
    # called with
    step_kwargs: Mapping[tuple[str, int, torch.dtype], Mapping[str, Any]]

    def initial_states(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Return every state before the first step, by name."""
        starts = self.initial
        return {n: spec.full(batch, starts.get(n, 0.0), device) for n, spec in self.states.items()}


def step_signature(model: nn.Module, sample: Any, batch: int | None = None) -> StepSignature:
    """Run one step from rest on fake tensors, for two batch sizes where the batch is free."""
    layers = dict(named_holders(model))
    calls: dict[tuple[str, int, torch.dtype], None] = {}

    def noting(path: str, original: StepKwargs) -> StepKwargs:
        def step_kwargs(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            calls[path, ndim, dtype] = None
            return original(ndim, dtype)

        return step_kwargs

    batches = BATCHES if batch is None else (batch,)
    runs: list[dict[str, Tensor]] = []
    for size in batches:
        # An error that the first batch size does not cause is about the size of the batch.
        kinds = (RuntimeError,) if runs else _VALUE_ERRORS
        with (
            restored(model, tensors=False, training=False),
            torch.no_grad(),
            FakeTensorMode() as mode,
            ExitStack() as overrides,
        ):
            set_states(model, {})
            for path, layer in layers.items():
                if isinstance(layer, SequenceLayer):
                    replacement = noting(path, layer.step_kwargs)
                    overrides.enter_context(layer._override_step_kwargs(replacement))
            replace_tensors(model, mode.from_tensor)
            with explain_trace_errors(model, *kinds):
                call(model, resized(sample, size))
            runs.append(get_states(model, detach=False))
    states = {
        name: TensorSpec.inferred(f"the state {name!r}", [run[name] for run in runs], batches)
        for name in runs[0]
    }
    # Outside of the fake mode: these tensors have values, the constants of the program.
    initial: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, layer in layers.items():
            if isinstance(layer, Noise) and "initial_position" not in layer._buffers:
                raise ValueError(
                    f"{layer_label(layer, path)} has no seed: every sequence draws where its noise "
                    "starts, which a program cannot. Build it with seed=; a caller of the program "
                    "may start from any other position."
                )
            for state in layer.active_states:
                if (name := join_path(path, state)) in states:
                    start = _without_repeats(layer._start_of(state, states[name].full(1)))
                    if bool((start != 0).any()):
                        initial[name] = start
        for layer in layers.values():
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, WEIGHT_HOOKS):  # what it set in the last call may be stale
                    hook(layer, ())
        step_kwargs = {
            key: cast(SequenceLayer, layers[key[0]]).step_kwargs(*key[1:]) for key in calls
        }
    return StepSignature(states, initial, step_kwargs)


def _without_repeats(value: Tensor) -> Tensor:
    """Return a tensor of size 1 in every dimension over which its values are equal."""
    for dim in range(value.ndim):
        first = value.narrow(dim, 0, 1)
        if bool((value == first).all()):
            value = first
    return value.clone()


def resized(sample: Any, batch: int, *, steps: int | None = None) -> Any:
    """Return zeros like ``sample`` ``[B, ...]`` of another batch size, and ``steps`` of time."""
    lead = (batch,) if steps is None else (steps, batch)

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros((*lead, *x.shape[1:]), dtype=x.dtype, device=x.device)

    return pytree.tree_map_only(Tensor, zeros, sample)


def replace_tensors(model: nn.Module, replacement_of: Callable[[Tensor], Tensor]) -> None:
    """Replace every tensor in the modules' attributes, and in dicts and lists there, by another."""
    for _, module in named_modules(model):
        attributes = vars(module)
        nested = [each for each in attributes.values() if isinstance(each, (dict, list))]
        container: Any
        for container in (attributes, *nested):
            keys: Any = list(container) if isinstance(container, dict) else range(len(container))
            for key in keys:
                if isinstance(container[key], Tensor):
                    container[key] = replacement_of(container[key])
