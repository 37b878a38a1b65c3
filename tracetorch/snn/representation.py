"""Write the ``repr`` of a layer as the constructor call that made it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor, nn

from tracetorch.cell import ConstructorCall
from tracetorch.snn.parameters import Weight


def constructor_call(
    cls: type, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[ConstructorCall, dict[str, object]]:
    """Write the constructor call, arguments at their default left out; return all of them too.

    Example:
        >>> str(constructor_call(LIF, (32, 0.95), {"dim": -3})[0])
        'LIF(32, beta=0.95, dim=-3)'
    """
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
