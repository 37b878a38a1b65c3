"""A rule of online learning as a value: what it takes for the derivatives of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tracetorch.online_learning.lanes import LaneDerivatives, StepCall


class Derivatives(NamedTuple):
    """The derivatives of one step of a layer, as a rule has them."""

    block: LaneDerivatives  # of the next states
    dropped: tuple[str, ...] = ()  # what is left out of them, in words
    # of the output, as those of a single next state, where the graph of the step itself has what
    # the rule leaves out; the graph's are replaced then, of all results
    of_output: LaneDerivatives | None = None


@dataclass(frozen=True)
class LearningRule:
    """A rule of online learning: all that tells it from the others."""

    name: str  # by which ``tt.online`` takes it, and by which traces are stored
    # of a call of a layer's step; ``None``: every state is a constant, and there are no traces
    derivatives: Callable[[StepCall], Derivatives] | None
    # the neurons of a layer have one trace of each input together, without a filter
    shared: bool = False
    lossless: bool = False  # a path that is dropped is an error
