"""``UnchangedStep``: tell whether a layer still has the step and options it had before."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.fingerprint import contents, helpers, reads_nothing
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
        # that of the tensors which a step makes of numbers
        self.default_dtype = torch.get_default_dtype()
        self.names = layer.options
        self.options = tuple([getattr(layer, name) for name in self.names])
        functions = (self.step, *others, *map(type, self.options))
        self.is_comparable = all(isinstance(option, _IMMUTABLE) for option in self.options) and all(
            map(reads_nothing, functions)
        )
        self.helpers = helpers(self.step) if self.is_comparable else []
        # functions stay the same objects where a module is reloaded in place: their parts do not
        self.functions: list[tuple[Any, ...]] = []
        for function in (self.step, *[value for _, _, value in self.helpers]):
            if parts := contents(function):
                self.functions.append((function, *parts))

    def holds(self, layer: StepLayer) -> bool:
        """Whether the layer has the same step and options, and the step calls the same helpers."""
        if (
            layer.step is not self.step
            or torch.get_default_dtype() is not self.default_dtype
            or not all(map(operator.is_, map(layer.__dict__.get, self.names), self.options))
        ):
            return False
        for function, code, defaults, keyword_defaults in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keyword_defaults
            ):
                return False
        # most have none, and starting a generator takes time
        return not self.helpers or all(names.get(n) is value for names, n, value in self.helpers)
