"""Declarations of a layer's constructor: parameters and options, and the call that made it.

A parameter is declared by its name, its value and its constraint, and may be assigned as it reads.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.cell import Cell, Constraint, ConstructorCall
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.torch_private import exclude_from_compile, has_values
from tracetorch.core.walk import Opaque
from tracetorch.functional.surrogates import Surrogate
from tracetorch.snn.parameters import (
    UNSET,
    S,
    Unset,
    Value,
    Weight,
    bounded_sigmoid,
    is_setup,
    least,
    resolve_setup,
    sigmoid,
)

Check = Callable[[str, object], object]

_NO_CALL = ConstructorCall("", (), {})


class Declarations(Opaque):
    """The declarations of a layer: the constraint of every parameter, the names of its options.

    Those in ``fixed`` cannot be assigned anew, those in ``checks`` only what these return.
    ``arguments`` says which arguments of the constructor's ``call`` are values of parameters and
    options. ``cell`` describes the layer, until something declared is written; ``cells`` what it
    was, the last one first.
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

    def constrain(self, name: str, constraint: Constraint) -> None:
        """Declare the constraint of a parameter; the layer is another one then."""
        self.constraints[name] = constraint
        self.cell = None

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
        """Let the call say what a parameter or an option is now, if one argument is its value."""
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


def completed(layer: Any, name: str, given: Value | Mapping[str, Any] | S | None, default: S) -> S:
    """Complete a setup as the user may write it, by the constructor's own default before ours.

    ``AdLIF(3, rho={"learnable": False})`` names no value: it is the default that ``AdLIF``'s
    constructor has for ``rho``, that of the nearest class which has the argument.
    """
    if isinstance(given, Mapping | Weight):
        for kind in reversed(type(layer).__mro__):
            own = vars(kind).get("__init__")
            argument = inspect.signature(own).parameters.get(name) if own else None
            if argument is not None and is_setup(argument.default):
                default = resolve_setup(name, argument.default, default)
    return resolve_setup(name, given, default)


def load_bound(layer: Any, name: str, own: float, saved: float | Unset | None, raw: Tensor) -> None:
    """Change the bound of a decay where it would change the values that are loaded.

    Its ``own`` is 0 for none; that of the layer which was saved ``None``, or ``UNSET``: not known.
    """
    found = float(raw.double().sigmoid().min()) if raw.numel() else own
    if isinstance(saved, float):
        # what learning has led below the saved bound was held there
        low = saved if found < max(own, saved) else own
    else:
        low = max(found, sys.float_info.min) if found < own else own
        if saved is UNSET and found < own * (1 - 1e-6):
            warnings.warn(
                f"{layer._label()} loads {found:.6g} as {name}, below its bound {own:.6g}, from "
                f"a dict that does not say which bound there was: {found:.6g} is the bound "
                "now. Load what state_dict() or tt.save gave, as it is.",
                stacklevel=2,
            )
    if low != own:
        layer._declared.constrain(name, bounded_sigmoid(low))


@exclude_from_compile
def assign(layer: Any, name: str, value: Any) -> None:
    """Write the raw tensor of a parameter in place, so that the parameter reads ``value``.

    Its rank, and the optimizer that holds the raw tensor, stay as they are.
    """
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} of {layer!r} was given a tensor with a gradient, and none flows through an "
            "assignment. Give value.detach(), or assign under torch.no_grad(); what is to be "
            f"learned is raw_{name}."
        )
    raw_name, raw = f"raw_{name}", layer._raw_of(name, value)
    if raw_name in layer.__dict__:
        raise ValueError(
            f"{layer._label()} computes {raw_name} before every call, by pruning or a norm of "
            f"weights; what is assigned to {name} would not last. Remove that first."
        )
    current = getattr(layer, raw_name)
    if raw.is_meta and not current.is_meta:
        raise ValueError(
            f"{layer._label()} was given a tensor on the meta device as {name}: it has no values."
        )
    if raw.ndim > current.ndim:
        raise ValueError(
            f"{layer._label()} has one {name} for all neurons, got {len(raw)} values. Give one "
            "number, or build the layer with rank 1."
        )
    constraint = layer._declared.constraints[name]
    # that of a raw value in bounds is the value itself
    wanted = raw.double() if constraint.inverse is None else constraint.value(raw.double())
    stored = current is layer._parameters.get(raw_name, layer._buffers.get(raw_name))
    written = [current] if stored else [*layer.parameters(), *layer.buffers()]
    with torch.no_grad(), restored_on_error(written):
        if stored:
            current.copy_(raw)
        else:  # by the right inverse of its parametrization
            setattr(layer, raw_name, raw.to(current).expand_as(current).clone())
        found = layer._constrained(name, getattr(layer, raw_name))
        tolerance = min(100 * torch.finfo(found.dtype).eps, 0.1)
        if has_values(found) and not torch.allclose(
            found.double(), wanted.to(found.device).expand_as(found), tolerance, 1e-6
        ):
            raise ValueError(
                f"{layer._label()} cannot have {value} as {name}: out of its bounds, it would "
                f"be {found.tolist()}."
            )
    layer._declared.note_assigned(type(layer), name, value)


def raw_of(layer: Any, name: str, value: Any) -> Tensor:
    """Return the raw tensor of a value, checked as a constructor checks it."""
    setup, constraint = Weight(value, 0), layer._declared.constraints[name]
    try:
        return setup.raw(name, layer.num_neurons, constraint)
    except ValueError as error:
        if least(constraint) is None:
            raise
        setup.raw(name, layer.num_neurons, sigmoid)  # raises where no bound would help
        raise ValueError(
            f"{error} Build the layer with {type(layer).__name__}(..., {name}="
            f"{'...' if isinstance(value, Tensor) else value}) for a bound as low."
        ) from None


def assigned_by_torch() -> bool:
    """Whether PyTorch assigns an attribute: ``functional_call``, which puts tensors in place."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.")


def constructor_call(
    cls: type, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[ConstructorCall, dict[str, object]]:
    """Write the constructor call, arguments at their default left out; return all of them too."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # __init__ is about to say so itself
        return ConstructorCall(cls.__name__, ("...",), {}), {}
    positional: list[str] = []
    named: dict[str, str] = {}
    for i, (name, value) in enumerate(list(bound.arguments.items())[1:]):
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += map(written, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= {key: written(each) for key, each in value.items()}
        elif not _equal(value, parameter.default):
            if i == 0:
                positional.append(written(value))
            else:
                named[name] = written(value)
    bound.apply_defaults()
    return ConstructorCall(cls.__name__, tuple(positional), named), bound.arguments


def written(value: object) -> str:
    """Write an argument; tensors by their shape, modules by their class."""
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Weight):
        parts = [f"{field.name}={written(getattr(value, field.name))}" for field in fields(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return repr(value)


def is_default(kind: type, name: str, value: object) -> bool:
    """Whether a value is what an argument of the constructor is where nobody gives it."""
    parameter = inspect.signature(kind.__init__).parameters.get(name)  # type: ignore[misc]
    return parameter is not None and _equal(value, parameter.default)


def _equal(value: object, default: object) -> bool:
    return type(value) is type(default) and not isinstance(value, Tensor) and value == default
