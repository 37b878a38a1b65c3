"""``LearnerState``: what online learning carries between steps, traces above all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import version_of
from tracetorch.core.walk import Opaque
from tracetorch.online_learning.rules.learning_rule import LearningRule
from tracetorch.online_learning.traces import Traces
from tracetorch.snn.module import layer_label
from tracetorch.snn.sequence_layer import SequenceLayer

Link: TypeAlias = tuple[str, nn.Linear]
"""An earlier layer, and the linear layer between it and a later one."""

Marks: TypeAlias = list[tuple[Tensor | None, int | None]]
"""The states of a layer, with their versions: an assignment and an edit in place show."""


class Filter(NamedTuple):
    """Traces of a layer, as the layer behind the next product filters them: of its own states."""

    traces: Traces  # of the earlier layer, one for each state of the later one
    ndim: int  # of the earlier layer's states, for its parameters
    dtype: torch.dtype


class LearnerState(Opaque):
    """All that is carried from step to step, besides the states of the layers."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, SequenceLayer], rule: LearningRule
    ) -> None:
        self.model, self.layers, self.rule = model, layers, rule
        self.traces: dict[str, Traces] = {}
        # of a layer, by the earlier layer and the product between the two
        self.filters: dict[str, dict[Link, Filter]] = {}
        self.left: dict[str, Marks | None] = {}  # the states after the last step
        # for which inputs the step of a layer has been found pointwise: its path, and their shape
        self.pointwise: set[tuple[str, torch.Size]] = set()
        self.probes: dict[tuple[Any, ...], list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a copy has states of its own, with these values
        return {**vars(self), "probes": {}, "left": {path: self.fits(path) for path in self.layers}}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        for path, fits in attributes["left"].items():
            self.left[path] = marks(self.layers[path]) if fits else None

    def fits(self, path: str) -> bool:
        """Whether the states of a layer are those that its traces belong to."""
        left = self.left.get(path)
        return left is not None and same(marks(self.layers[path]), left)

    def check_fits(self, path: str) -> None:
        """Raise where the states of a layer are others than those that its traces belong to."""
        if not self.fits(path):
            raise ValueError(
                f"{layer_label(self.layers[path], path)} has other states than the learner's last "
                "step left: its traces do not fit them. Call zero_states() or detach_states() of "
                "the learner, not of the model."
            )

    def replace(self, traces: dict[str, Traces], filters: dict[str, dict[Link, Filter]]) -> None:
        """Take other traces, which belong to the states as they are now."""
        self.traces, self.filters = traces, filters
        self.left = {path: marks(layer) for path, layer in self.layers.items()}

    def change(self, changed: Callable[[str, Traces], Traces]) -> None:
        """Replace the traces of every layer: ``changed`` is given its path and each of them."""
        filters = {
            path: {
                link: each._replace(traces=changed(path, each.traces))
                for link, each in filters.items()
            }
            for path, filters in self.filters.items()
        }
        self.replace({path: changed(path, each) for path, each in self.traces.items()}, filters)

    def follow_states(self) -> None:
        """Move the traces to where the states have been moved; forget them with the states."""
        first = {path: getattr(each, each.active_states[0]) for path, each in self.layers.items()}
        if any(first[path] is None for path in self.traces):
            self.replace({}, {})
        self.change(lambda path, traces: traces.mapped(lambda each: each.to(first[path])))


def marks(layer: SequenceLayer) -> Marks:
    """Return the active states of a layer, with their versions."""
    states = (getattr(layer, name) for name in layer.active_states)
    return [(state, None if state is None else version_of(state)) for state in states]


def same(now: Marks, then: Marks) -> bool:
    """Whether no state has been assigned or edited between two marks."""
    return all(a is b and v == w for (a, v), (b, w) in zip(now, then, strict=True))
