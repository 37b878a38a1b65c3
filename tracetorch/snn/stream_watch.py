"""Tell what goes wrong over time without an error: a state not finite, a graph that grows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import functorch_active, transformed_by
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.passes import Pass

LOOK_EVERY = 100  # single steps: a look takes microseconds, a step tens of them
LONGEST_GRAPH = 1000  # calls, of a step or of a sequence

_log = logging.getLogger("tracetorch")
_graph_reported = False

LayersWithStates = Sequence[tuple[Any, dict[str, Any]]]
"""Neuron layers, each with what holds its states by their names."""


class Watched(Protocol):
    """A layer or a stream, of which single steps are counted."""

    __dict__: dict[str, Any]
    _nan_reported: str

    def _layers_with_states(self) -> LayersWithStates: ...

    def _label(self) -> str: ...

    def _name_of(self, layer: Any, state: str) -> str: ...


def watch_call(runner: Watched, layers: LayersWithStates = ()) -> None:
    """Count a call before it runs: a single step, which no pass holds, or with layers a sequence.

    Of steps, look at the states now and then. Of those that go on in the graph of the last one,
    log where they are very many.
    """
    # one function without generators, and not by attribute, for it is behind every step
    notes = runner.__dict__
    if not layers:
        notes["_steps_run"] = number = notes.get("_steps_run", 0) + 1
        if number % LOOK_EVERY == 0:
            look_in_stream(runner)
        if not torch.is_grad_enabled():
            return
        alone = "_modules" in notes and not notes["_modules"]
        layers = [(runner, notes)] if alone else runner._layers_with_states()
    # states zeroed, set, detached or computed under no_grad start the count anew; any of them may
    # be in a graph, for what stands in front may be frozen
    inside = False
    for layer, states in layers:
        for name in layer.states:
            state = states.get(name)
            inside = inside or (isinstance(state, Tensor) and state.requires_grad)
    notes["_graph_calls"] = calls = notes.get("_graph_calls", 0) + 1 if inside else 0
    if calls == LONGEST_GRAPH:
        _report_graph(runner)


def watch_sequence(run: Pass) -> None:
    """Count a sequence in the graph of the one before, from whose states it went on.

    Called before the pass commits: the states that it began with are still those of the layers.
    """
    if torch.is_grad_enabled():
        layers: list[tuple[Any, dict[str, Any]]] = []
        for entry in run.entries.values():
            if hasattr(type(entry.module), "_nan_reported"):
                layers.append((entry.module, entry.module.__dict__))
        if layers:
            watch_call(layers[0][0], layers)


def look_in_stream(runner: Watched) -> None:
    """Log once, until ``zero_states()``, that a state in a stream is not finite."""
    if runner._nan_reported or transformed_by() is not None:
        return
    # what a delay holds does not stay: behind its last step it is gone
    layers = [each for each in runner._layers_with_states() if not each[0]._state_kind.tail]
    found = state_not_finite(layers)
    if found is None:
        return
    layer, name, _, means = found
    runner.__dict__["_nan_reported"] = "stream"
    _log.warning(
        "%s is %s, and stays so until zero_states(). %s, so that what follows looks finite. "
        "Look at each input: if not x.isfinite().all(), use the last good one.",
        runner._name_of(layer, name),
        *means,
    )


def states_of_layers(found: Iterable[tuple[Any, dict[str, Any]]]) -> LayersWithStates:
    """Return those of some modules with attributes that are neuron layers.

    A memory of a module's own may hold what it likes.
    """
    return [each for each in found if hasattr(type(each[0]), "_nan_reported")]


def state_not_finite(
    layers: LayersWithStates, infinite: bool = True
) -> tuple[Any, str, Tensor, tuple[str, str]] | None:
    """Return layer, name and value of a state that is NaN or infinite, and what that means.

    A GPU would have to be waited for. What is infinite at rest may be so.
    """
    for layer, states in layers:
        for name in layer.states:
            state = states.get(name)
            if type(state) is not Tensor or not state.is_cpu:
                continue
            # by one number, for it is behind every sequence: NaN and infinity show in the sum
            total = state.detach().sum().item()
            if total - total == 0:
                continue
            if bool(state.isnan().any()):
                return layer, name, state, ("NaN", "A neuron's spike is 0 there")
            if infinite and bool(state.isinf().any()):
                rest = layer._buffers.get(f"initial_{name}")
                if rest is None or bool(rest.isfinite().all()):
                    means = "A neuron fires there at every step, or never"
                    return layer, name, state, ("infinite", means)
    return None


def path_of(model: nn.Module, layer: nn.Module, state: str) -> str:
    """Return the path of a state of a layer in a model."""
    path = next((path for path, module in named_modules(model) if module is layer), "")
    return join_path(path, state)


def _report_graph(runner: Watched) -> None:
    """Log, once in a process, that very many calls are in one graph."""
    global _graph_reported
    if not _graph_reported:
        _graph_reported = True
        _log.warning(
            "%s was called %d times in one graph, and memory grows with each. To run a model "
            "use torch.no_grad(); to train it call detach_states() after each backward(), of the "
            "stream where there is one, else tt.detach_states(model).",
            runner._label(),
            LONGEST_GRAPH,
        )


def look_behind_sequence(run: Pass, model: nn.Module, checked: bool) -> None:
    """Log once that a state is NaN at the end of a sequence, for the outputs look finite.

    Once for each model, and once more where there are gradients; where the sequence went on from
    earlier states, once until they are zeroed, and what is infinite too, for it then stays.
    ``checked``: ``check=True`` has not found it.
    """
    if functorch_active() or run.traced:
        return
    layers: list[tuple[Any, dict[str, Any]]] = []
    for entry in run.entries.values():  # a generator would be a call for each
        if hasattr(type(entry.module), "_nan_reported"):
            layers.append((entry.module, entry.states))
    found = state_not_finite(layers, infinite=run.went_on)
    if found is None:
        return
    known = {layer._nan_reported for layer, _ in layers} - {""}
    layer, name, state, means = found
    trains = state.requires_grad
    if known - {"sequence"} or (known and not trains):
        return
    within = "stream" if run.went_on else "training" if trains else "sequence"
    for each, _ in layers:
        each.__dict__["_nan_reported"] = within
    advice = "Look at each input of the stream: x.isfinite().all()."
    if means[0] == "NaN":
        names = "diagnose(model, (x, target), loss)" if checked else "unroll(model, x, check=True)"
        advice = (
            f"tt.{names} names where it begins. NaN in padding does no harm to outputs that a mask "
            "leaves out, but gradients of weights become NaN, for 0 * NaN is NaN: fill it, with "
            "x.masked_fill(~mask[..., None], 0)."
        )
    _log.warning(
        "%s is %s at the end of a sequence. %s, so that what follows looks finite%s. %s",
        path_of(model, layer, name),
        *means,
        ", the loss too, and one step of the optimizer makes weights NaN" if trains else "",
        advice,
    )
