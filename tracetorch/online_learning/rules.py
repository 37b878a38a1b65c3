"""The rules of online learning, from the most to the least exact: a value each, and an entry here.

``tt.online`` describes them and names their sources. E-prop leaves the reset out of the derivative
of a state, and keeps what else a spike does, an adaptation: two runs of the step are
differentiated, one with its spikes constant for the states that are reset, and one as it is for the
others. A next state that was computed from another one goes on through that one's derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    Run,
    StepCall,
    added,
    detached_spikes,
    gradients,
    multiplied,
)
from tracetorch.snn.neuron import spike_functions

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]

_SPIKES = "all that a spike does to its own neuron (reset, adaptation) is a constant"


class Derivatives(NamedTuple):
    block: LaneDerivatives  # of the next states
    dropped: tuple[str, ...] = ()  # what is left out of them, in words
    # of the output, as those of a single next state, where the graph of the step itself has what
    # the rule leaves out; the graph's are replaced then, of all results
    of_output: LaneDerivatives | None = None


@dataclass(frozen=True)
class LearningRule:
    name: str  # by which ``tt.online`` takes it, and by which traces are stored
    # of a call of a layer's step; ``None``: every state is a constant, and there are no traces
    derivatives: Callable[[StepCall], Derivatives] | None
    # the neurons of a layer have one trace of each input together, without a filter
    shared: bool = False
    lossless: bool = False  # a path that is dropped is an error


def _derivatives(call: StepCall, *, detach: bool) -> Derivatives:
    spikes = spike_functions(call.layer) if detach else ()
    return Derivatives(call.derivatives(spikes), (_SPIKES,) if spikes else ())


def _eprop(call: StepCall) -> Derivatives:
    spikes = spike_functions(call.layer)
    if not spikes:
        return Derivatives(call.derivatives())
    rows = _Rows(call, spikes)
    count = len(rows.names)
    block = call.by_source([rows.of(i) for i in range(count)])
    dropped = (f"the reset of {name} by a spike is a constant" for name in rows.dropped)
    of_output = call.by_source([rows.of(count)]) if rows.resetting else None
    return Derivatives(block, tuple(dropped), of_output)


class _Rows:
    """Derivatives of the next states by all sources, a row each, without the resets by spikes.

    ``Neuron.reset_states`` names what is reset; or else it is what the input reaches in any number
    of steps, but for spikes. A state that holds the last spikes alone is a spike where it resets.
    """

    def __init__(self, call: StepCall, spikes: Collection[str]) -> None:
        self.names = call.layer.active_states
        self.dropped: dict[str, None] = {}  # states whose reset is left out
        self.resetting: set[int] = set()  # states that hold a spike which resets
        self._fired: list[Tensor] = []
        self._full = call.run(dict.fromkeys(spikes, partial(partial, self._noted)))
        self._constant = call.run(dict.fromkeys(spikes, detached_spikes))
        self._found: dict[int, list[Tensor | None]] = {}
        count = len(self.names)  # of the sources, states come first, then the input
        every, lane = range(count), set(range(count + 1))
        without = [_sources_of(self._constant, i) & lane for i in every]
        self._holds_spike = {
            j for j in every if not without[j] and _sources_of(self._full, j) & lane
        }
        named = getattr(call.layer, "reset_states", None)
        self._reset: set[int] = set()
        if named is not None:
            self._reset = {i for i in every if self.names[i] in named}
        else:  # what the input reaches over any number of steps
            while more := {i for i in every if without[i] & {count, *self._reset}} - self._reset:
                self._reset |= more

    def _noted(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        self._fired.append(function(u))
        return self._fired[-1]

    def of(self, i: int) -> list[Tensor | None]:
        """Return the row of a next state, or of the output, which is behind the last of them."""
        if i in self._found:
            return self._found[i]
        direct, through = _direct_gradients(self._constant if i in self._reset else self._full, i)
        if i in self._reset:
            resetting = {j for j in self._holds_spike if direct[j] is not None}
            direct = [None if j in resetting else d for j, d in enumerate(direct)]
            self.resetting |= resetting
            # or it follows from a spike, otherwise than through another next state
            spikes = {each.grad_fn for each in self._fired if each.grad_fn is not None}
            others = {end.grad_fn for end in _other_ends(self._full, i).values()} - spikes
            if resetting or reached([_node(self._full.value(i))], spikes | others)[0] & spikes:
                self.dropped[self.names[i]] = None
        for k, factor in through.items():
            pairs = zip(direct, self.of(k), strict=True)
            direct = [added((a, multiplied(b, factor))) for a, b in pairs]
        self._found[i] = direct
        return direct


def _other_ends(run: Run, i: int) -> dict[int, Tensor]:
    """Return the next states that another one may have been computed from."""
    own = run.value(i).grad_fn
    return {k: end for k, end in enumerate(run.ends) if end.grad_fn not in (None, own)}


def _sources_of(run: Run, i: int, stops: Collection[Any] = ()) -> set[int]:
    """Return the places of the sources that a next state depends on."""
    found = {id(leaf) for leaf in reached([_node(run.value(i))], stops)[1]}
    return {place for place, source in enumerate(run.sources) if id(source) in found}


def _node(end: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(end).node if end.requires_grad else None


def _direct_gradients(run: Run, i: int) -> tuple[list[Tensor | None], dict[int, Tensor]]:
    """Differentiate a next state by the sources, and by the next states it was computed from."""
    through: dict[int, Tensor] = {}

    def cut(k: int, gradient: Tensor) -> Tensor:
        through[k] = gradient
        return torch.zeros_like(gradient)

    others = _other_ends(run, i)
    handles = [end.register_hook(partial(cut, k)) for k, end in others.items()]  # type: ignore[no-untyped-call]
    try:
        found = gradients(run.value(i), run.sources, None)
    finally:
        for handle in handles:
            handle.remove()
    # behind a cut there are zeros, which say nothing of what is there
    places = _sources_of(run, i, {end.grad_fn for end in others.values()})
    return [d if place in places else None for place, d in enumerate(found)], through


def reached(roots: Iterable[Any], stops: Collection[Any]) -> tuple[set[Any], list[Tensor]]:
    """Walk an autograd graph from some nodes; return the stops that were met, and other leaves."""
    seen: set[Any] = set()
    met: set[Any] = set()
    leaves: list[Tensor] = []
    pending = [*roots]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in stops:
            met.add(node)
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return met, leaves


def reached_from(node: Any) -> list[Tensor]:
    """Return the leaves that a node of an autograd graph depends on."""
    return reached((parent for parent, _ in node.next_functions), ())[1]


RULES: dict[Rule, LearningRule] = {
    "exact": LearningRule("exact", partial(_derivatives, detach=False), lossless=True),
    "eprop": LearningRule("eprop", _eprop),
    "ottt": LearningRule("ottt", partial(_derivatives, detach=True), shared=True),
    "local": LearningRule("local", None),
}
