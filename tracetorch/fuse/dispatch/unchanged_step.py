"""``UnchangedStep``: tell whether a layer still has the step and options it had before."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.fingerprint import helpers, reads_nothing
from tracetorch.fuse.protocol import StepLayer

# options that cannot change unseen
_IMMUTABLE = (type(None), bool, int, float, str, Surrogate)


class UnchangedStep:
    """A layer's step and its options at one time.

    Args:
        layer: the layer.
        others: functions that the step depends on too.

    """

    def __init__(self, layer: StepLayer, *others: Callable[..., Any]) -> None:
        self.step = layer.step
        self.names = layer.options
        self.options = tuple([getattr(layer, name) for name in self.names])
        functions = (self.step, *others, *map(type, self.options))
        self.is_comparable = all(isinstance(option, _IMMUTABLE) for option in self.options) and all(
            map(reads_nothing, functions)
        )
        self.helpers = helpers(self.step) if self.is_comparable else []

    def holds(self, layer: StepLayer) -> bool:
        """Whether the layer has the same step and options, and the step calls the same helpers."""
        return (
            layer.step is self.step
            and all(map(operator.is_, map(layer.__dict__.get, self.names), self.options))
            # most have none, and starting a generator takes time
            and (not self.helpers or all(names.get(n) is value for names, n, value in self.helpers))
        )
