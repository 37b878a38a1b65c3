"""Name traces, so that they travel with the states: for `get_states`, `set_states`, files.

A trace is called ``trace:<rule>:<layer>:<what is learned>:<state>``; between the layer and what is
learned stand, in the traces that a later layer filters, the earlier layer and the product between
the two. What was frozen has a name without a state, and no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.walk import join_path, named_modules
from tracetorch.online_learning.held import Filter, Held
from tracetorch.online_learning.products import inputs_of, is_product, lanes
from tracetorch.online_learning.traces import Traces
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import has_step
from tracetorch.snn.states import EXTRA

_WEIGHT = ".weight"  # what ends the name of a product; a parameter's has no dot


def named_traces(held: Held) -> dict[str, Tensor]:
    """Return every trace by name.

    Raises:
        ValueError: the states of a layer are not those that its traces belong to, or a path has a
            colon.
    """
    found: dict[str, Tensor] = {}
    paths = {id(module): path for path, module in reversed(named_modules(held.model))}
    for layer, traces, link in _groups(held):
        held.check_fits(layer)
        between = () if link is None else (link[0], paths[id(link[1])])
        every = {
            **traces.parameters,
            **{join_path(paths[id(m)], _WEIGHT[1:]): t for m, t in traces.products.items()},
        }
        for origin, trace in every.items():
            for state, value in zip(held.layers[layer].active_states, trace, strict=True):
                if value is not None:
                    found[_name(held, layer, *between, origin, state)] = value
    for layer, origins in held.frozen.items():
        for origin in sorted(origins):
            found[_name(held, layer, origin, "")] = torch.zeros(0)
    return found


def _groups(held: Held) -> Iterator[tuple[str, Traces, Any]]:
    """Iterate over the traces of each layer, and those that it filters, with their link."""
    for layer, traces in held.traces.items():
        yield layer, traces, None
        for link, each in held.filters.get(layer, {}).items():
            yield layer, each.traces, link


def _name(held: Held, *parts: str) -> str:
    for part in parts:
        if ":" in part:
            raise ValueError(f"a colon in the path {part!r} stands in the way of naming traces.")
    return EXTRA + ":".join((held.rule.name, *parts))


class Carried:
    """Traces read from names and tensors, checked against a model: :meth:`put` cannot fail.

    Args:
        held: what they are for.
        named: as :func:`named_traces` gives them.
        states: the states that they belong to, by path within the model.

    Raises:
        TypeError: a trace is no tensor.
        ValueError: a name or a shape does not fit the model, the rule or the states.
    """

    def __init__(
        self, held: Held, named: Mapping[str, Tensor], states: Mapping[str, Tensor]
    ) -> None:
        self.held, self.states = held, states
        self.modules = dict(named_modules(held.model))
        self.traces: dict[str, Traces] = {}
        self.filters: dict[str, dict[Any, Filter]] = {}
        self.frozen: dict[str, frozenset[str]] = {}
        for path, layer in held.layers.items():
            live = any(join_path(path, state) in states for state in layer.active_states)
            if named and live and has_step(layer):
                self.traces[path], self.filters[path] = Traces(held.rule.shared), {}
        for name, value in named.items():
            try:
                self._add(name.removeprefix(EXTRA).split(":"), value)
            except KeyError as error:
                raise ValueError(
                    f"the trace {name!r} does not fit the learner: there is no {error}."
                ) from None

    def _add(self, parts: list[str], value: Tensor) -> None:
        if len(parts) not in (4, 6):
            raise KeyError(":".join(parts))
        rule, path, *between, origin, state = parts
        if rule != self.held.rule.name:
            raise ValueError(
                f"the traces are those of rule={rule!r}, and the learner has "
                f"rule={self.held.rule.name!r}. Make one of the same rule, or leave the traces out."
            )
        layer = self.held.layers[path]
        if not state:
            self.frozen[path] = self.frozen.get(path, frozenset()) | {origin}
            return
        traces, source = self.traces[path], path
        if between:
            source, product = between[0], self.modules[between[-1]]
            if plain_class(product) is not nn.Linear:
                raise KeyError(between[-1])
            first = self._state(source)
            link = source, product
            if link not in self.filters[path]:
                self.filters[path][link] = Filter(Traces(False), first.ndim, first.dtype)
            traces = self.filters[path][link].traces
        place = {each: i for i, each in enumerate(layer.active_states)}[state]
        expected = self._state(source)
        key: Any = origin
        kept: dict[Any, list[Tensor | None]] = traces.parameters
        if origin.endswith(_WEIGHT):
            key, kept = self.modules[origin.removesuffix(_WEIGHT)], traces.products
            if not is_product(key):
                raise KeyError(origin)
            rows = lanes(key, expected)
            size = (len(rows), inputs_of(key)) if traces.shared else (*rows.shape, inputs_of(key))
        else:
            if origin not in self.held.layers[source].constraints:
                raise KeyError(origin)
            size = tuple(expected.shape)
        if not isinstance(value, Tensor):
            raise TypeError(f"a trace must be a tensor, got {type(value).__name__}.")
        if value.shape != size or value.dtype != expected.dtype:
            raise ValueError(
                f"the trace of {origin!r} in {layer_label(layer, path)} must have shape "
                f"{list(size)} and {expected.dtype}, got {list(value.shape)} and {value.dtype}."
            )
        kept.setdefault(key, [None] * len(layer.active_states))[place] = value.detach().clone()

    def _state(self, path: str) -> Tensor:
        return self.states[join_path(path, self.held.layers[path].active_states[0])]

    def put(self) -> None:
        """Give the traces to a learner whose states have been set."""
        self.held.traces, self.held.filters = self.traces, self.filters
        self.held.frozen = self.frozen
        self.held.follow_states()
