"""Name traces, so that they travel with the states: for `get_states`, `set_states`, files.

A trace is called ``trace:<rule>:<layer>:<what is learned>:<state>``; between the layer and what is
learned stand, in the traces that a later layer filters, the earlier layer and the product between
the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tracetorch.core.walk import join_path, named_modules
from tracetorch.online_learning.learner_state import Filter, LearnerState, Link
from tracetorch.online_learning.linear_maps import inputs_of, is_linear_map, lanes
from tracetorch.online_learning.traces import Traces
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import has_step
from tracetorch.snn.states import EXTRA

_WEIGHT = ".weight"  # what ends the name of a product; a parameter's has no dot


def named_traces(learner: LearnerState) -> dict[str, Tensor]:
    """Return every trace by name."""
    found: dict[str, Tensor] = {}
    paths = {id(module): path for path, module in reversed(named_modules(learner.model))}
    for layer, own in learner.traces.items():
        learner.check_fits(layer)
        groups: list[tuple[tuple[str, ...], Traces]] = [((), own)]
        for (earlier, product), each in learner.filters.get(layer, {}).items():
            groups.append(((earlier, paths[id(product)]), each.traces))
        for between, traces in groups:
            weights = {join_path(paths[id(m)], _WEIGHT[1:]): t for m, t in traces.products.items()}
            for origin, trace in {**traces.parameters, **weights}.items():
                for state, value in zip(learner.layers[layer].active_states, trace, strict=True):
                    if value is None:
                        continue
                    parts = (learner.rule.name, layer, *between, origin, state)
                    colon = next((part for part in parts if ":" in part), None)
                    if colon is not None:
                        raise ValueError(
                            f"a colon in the path {colon!r} stands in the way of naming traces."
                        )
                    found[EXTRA + ":".join(parts)] = value
    return found


def checked_traces(
    learner: LearnerState, named: Mapping[str, Tensor], states: Mapping[str, Tensor]
) -> Callable[[], None]:
    """Check traces that belong to ``states``; return what sets them, and cannot fail."""
    found = _Traces(learner, states)
    for name, value in named.items():
        try:
            found.add(name.removeprefix(EXTRA).split(":"), value)
        except KeyError as error:
            raise ValueError(
                f"the trace {name!r} does not fit the learner: there is no {error}."
            ) from None

    def put() -> None:
        learner.replace(found.traces, found.filters)
        learner.follow_states()

    return put


class _Traces:
    """Traces that are read one by one, each checked."""

    def __init__(self, learner: LearnerState, states: Mapping[str, Tensor]) -> None:
        self.learner, self.states = learner, states
        self.modules = dict(named_modules(learner.model))
        live = [
            path
            for path, layer in learner.layers.items()
            if has_step(layer) and any(join_path(path, s) in states for s in layer.active_states)
        ]
        self.traces = {path: Traces(learner.rule.shared) for path in live}
        self.filters: dict[str, dict[Link, Filter]] = {path: {} for path in live}

    def add(self, parts: list[str], value: Tensor) -> None:
        if len(parts) not in (4, 6):
            raise KeyError(":".join(parts))
        rule, path, *between, origin, state = parts
        if rule != self.learner.rule.name:
            raise ValueError(
                f"the traces are those of rule={rule!r}, and the learner has "
                f"rule={self.learner.rule.name!r}. Make one of the same rule, or leave the traces "
                "out."
            )
        layer = self.learner.layers[path]
        if not state:  # in older files, the name of what was frozen in a step
            return
        traces, source = self.traces[path], path
        if between:
            source, product = between[0], self.modules[between[-1]]
            if plain_class(product) is not nn.Linear:
                raise KeyError(between[-1])
            first = self._state(source)
            new = Filter(Traces(False), first.ndim, first.dtype)
            traces = self.filters[path].setdefault((source, product), new).traces  # type: ignore[arg-type]
        place = {each: i for i, each in enumerate(layer.active_states)}[state]
        expected = self._state(source)
        key: Any = origin
        kept: dict[Any, list[Tensor | None]] = traces.parameters
        size: tuple[int, ...] = tuple(expected.shape)
        if origin.endswith(_WEIGHT):
            key, kept = self.modules[origin.removesuffix(_WEIGHT)], traces.products
            if not is_linear_map(key):
                raise KeyError(origin)
            rows = lanes(key, expected)
            size = (len(rows), inputs_of(key)) if traces.shared else (*rows.shape, inputs_of(key))
        elif origin not in self.learner.layers[source].constraints:
            raise KeyError(origin)
        if not isinstance(value, Tensor):
            raise TypeError(f"a trace must be a tensor, got {type(value).__name__}.")
        if value.shape != size or value.dtype != expected.dtype:
            raise ValueError(
                f"the trace of {origin!r} in {layer_label(layer, path)} must have shape "
                f"{list(size)} and {expected.dtype}, got {list(value.shape)} and {value.dtype}."
            )
        kept.setdefault(key, [None] * len(layer.active_states))[place] = value.detach().clone()

    def _state(self, path: str) -> Tensor:
        return self.states[join_path(path, self.learner.layers[path].active_states[0])]
