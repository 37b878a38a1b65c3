"""``Declarations``: what the constructor of a layer has declared, and the call that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tracetorch.cell import Cell, Constraint, ConstructorCall
from tracetorch.core.walk import Opaque
from tracetorch.functional.surrogates import Surrogate
from tracetorch.snn.representation import is_default, written

Check = Callable[[str, object], object]

_NO_CALL = ConstructorCall("", (), {})


class Declarations(Opaque):
    """The declarations of a layer: the constraint of every parameter, the names of its options.

    Those in ``fixed`` cannot be assigned anew, those in ``checks`` only what these return.
    ``arguments`` says which arguments of the constructor's ``call`` are values of parameters and
    options. ``cell`` describes the layer, until something declared is written; ``cells`` what it
    was, the last one first.

    Args:
        call: the constructor call that makes the layer.
        given: its arguments, those at their default too.
    """

    def __init__(self, call: ConstructorCall, given: Mapping[str, object]) -> None:
        self.call = call
        self.arguments: dict[str, tuple[str, ...]] = {}
        self.constraints: dict[str, Constraint] = {}
        self.options: tuple[str, ...] = ()
        self.fixed: tuple[str, ...] = ()
        self.checks: dict[str, Check] = {}
        self.cell: Cell | None = None
        self.cells: list[Cell] = []
        # the constructor's caller holds the arguments while they are compared, and no one later
        self._identities = {name: (id(value), type(value)) for name, value in given.items()}

    def note_argument(self, name: str, value: object) -> None:
        """Note which arguments are the value of a parameter or an option, if any are.

        They are the very object, under the same name; a surrogate is, under any.
        """
        is_surrogate = isinstance(value, Surrogate)
        found = [
            argument
            for argument, identity in self._identities.items()
            if identity == (id(value), type(value)) and (is_surrogate or argument == name)
        ]
        if found:
            self.arguments[name] = tuple(found)

    def note_assigned(self, kind: type, name: str, value: object) -> None:
        """Let the call say what a parameter or an option is now, if one argument is its value.

        Args:
            kind: the class of the layer, whose constructor knows the defaults.
            name: of the parameter or the option.
            value: that it has now.
        """
        arguments = self.arguments.get(name, ())
        if len(arguments) == 1:  # copies of the layer share the dict
            named = {**self.call.named, arguments[0]: written(value)}
            if is_default(kind, arguments[0], value):
                del named[arguments[0]]
            self.call = self.call._replace(named=named)

    def __getstate__(self) -> dict[str, Any]:
        own = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }
        return {**own, "cell": None, "cells": [], "_identities": {}}  # of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.keys() != vars(Declarations(state.get("call", _NO_CALL), {})).keys():
            raise ValueError(
                "this pickle of a neuron layer was written by another version of traceTorch, which "
                "kept other declarations. Load it with that version and write it with tt.save, or "
                "save its state_dict; both load here into a model that is built anew."
            )
        vars(self).update(state)
