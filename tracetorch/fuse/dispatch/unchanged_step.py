"""``UnchangedStep``: tell whether what a cell's step calls is what it called before."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from tracetorch.cell import Cell
from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.ir.fingerprint import contents, helpers, reads_nothing

# options that cannot change unseen
_IMMUTABLE = (type(None), bool, int, float, str, Surrogate)


class UnchangedStep:
    """The functions that a cell's step calls at one time.

    Args:
        cell: the cell.
        others: functions that the step depends on too.

    """

    def __init__(self, cell: Cell, *others: Callable[..., Any]) -> None:
        # that of the tensors which a step makes of numbers
        self.default_dtype = torch.get_default_dtype()
        options = cell.options.values()
        constraints = [
            each.value if isinstance(each.value, FunctionType) else type(each.value)
            for each in cell.constraints.values()
        ]
        functions = (cell.step, *others, *map(type, options), *constraints)
        self.is_comparable = all(isinstance(option, _IMMUTABLE) for option in options) and all(
            map(reads_nothing, functions)
        )
        self.helpers = helpers(cell.step) if self.is_comparable else []
        # functions stay the same objects where a module is reloaded in place: their parts do not
        self.functions: list[tuple[Any, ...]] = []
        for function in (cell.step, *[value for _, _, value in self.helpers]):
            if parts := contents(function):
                self.functions.append((function, *parts))

    def holds(self) -> bool:
        """Whether the step and its helpers have the code they had, and call the same helpers."""
        if torch.get_default_dtype() is not self.default_dtype:
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
