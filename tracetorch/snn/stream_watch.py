"""Log, once for each model, that a state is NaN, for what follows it looks finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from tracetorch.core.torch_private import functorch_active, observed_by
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.passes import Pass

LOOK_EVERY = 100  # single steps: a look takes microseconds, a step tens of them

_log = logging.getLogger("tracetorch")


def state_with_nan(layers: Iterable[tuple[Any, dict[str, Any]]]) -> tuple[Any, str] | None:
    """Return a layer and the name of its state that is NaN; a GPU would have to be waited for."""
    for layer, states in layers:
        # a memory of a module's own may hold what it likes, and what a delay holds does not stay
        if not hasattr(type(layer), "_nan_reported") or layer._state_kind.tail:
            continue
        for name in layer.states:
            state = states.get(name)
            # by one number, for it is behind every sequence: NaN and infinity show in the sum
            if type(state) is Tensor and state.is_cpu:
                total = state.detach().sum().item()
                if total - total != 0 and bool(state.isnan().any()):
                    return layer, name
    return None


def path_of(model: nn.Module, layer: nn.Module, state: str) -> str:
    """Return the path of a state of a layer in a model."""
    path = next((path for path, module in named_modules(model) if module is layer), "")
    return join_path(path, state)


def _report(found: tuple[Any, str], layers: list[Any], name_of: Callable[[Any, str], str]) -> None:
    """Log that the state that was found is NaN, once for all of these layers."""
    if any(getattr(layer, "_nan_reported", False) for layer, _ in layers):
        return
    for layer, _ in layers:
        layer.__dict__["_nan_reported"] = True
    _log.warning(
        "%s is NaN, and stays so until zero_states(). A neuron's spike is 0 there, so that what "
        "follows looks finite; but a gradient makes weights NaN, behind a mask too, for 0 * NaN is "
        "NaN. tt.diagnose names where it begins. Fill padding by "
        "x.masked_fill(~mask[..., None], 0); of a stream, if not x.isfinite().all(), use the last "
        "good input.",
        name_of(*found),
    )


def report_nan_behind(run: Pass, model: nn.Module) -> None:
    """Log that a state is NaN which a pass over a model has left."""
    if run.traced or functorch_active():
        return
    layers: list[tuple[Any, dict[str, Any]]] = []
    for entry in run.entries.values():  # a comprehension would be one more call
        layers.append((entry.module, entry.states))
    if (found := state_with_nan(layers)) is not None and observed_by(modes=False) is None:
        _report(found, layers, partial(path_of, model))


def count_step(layer: Any) -> None:
    """Count a single step outside of any pass, and look at the states now and then."""
    notes = layer.__dict__
    notes["_steps_run"] = number = notes.get("_steps_run", 0) + 1
    if number % LOOK_EVERY == 0 and observed_by(modes=False) is None:
        layers = [(module, module.__dict__) for module in layer.modules()]
        if (found := state_with_nan(layers)) is not None:
            _report(found, layers, lambda module, state: f"{state} of {module._label()}")
