"""Read and check signatures: of constructors, of the calls that make layers, and of steps."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields
from types import MethodType
from typing import Any

from torch import Tensor, nn

from tracetorch.cell import ConstructorCall
from tracetorch.core.checks import suggestion
from tracetorch.snn.parameters import Weight

_THRESHOLDS = ("pos_threshold", "neg_threshold")
_SURROGATES = (
    *("surrogate_derivative", "pos_surrogate_derivative", "neg_surrogate_derivative"),
    *("spike", "pos_spike", "neg_spike"),
)
# names of snnTorch, SpikingJelly and Norse, and of arguments, and what a layer may have for them
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("threshold", "v_threshold", "v_th"), _THRESHOLDS),
    **dict.fromkeys(("spike_grad", "surrogate_function", *_SURROGATES[:3]), _SURROGATES),
    "learn_threshold": ("learn_pos_threshold", "learn_neg_threshold"),
    **dict.fromkeys(("reset_mechanism", "v_reset"), ("reset",)),
    **dict.fromkeys(("tau", "decay"), ("beta",)),
    "decay_input": ("beta_ema",),
}


class ConstructorSignature:
    """The signature of a class is that of its ``__init__``; instances have none of their own."""

    def __get__(self, layer: object, kind: Any) -> inspect.Signature:
        if layer is not None:
            raise AttributeError("__signature__")
        return inspect.signature(MethodType(kind.__init__, kind))


def check_arguments(cls: type, given: Collection[str]) -> None:
    """Raise ``TypeError`` for arguments, by name, that the constructor of a class lacks."""
    # a decorator of __init__ may take more than what it wraps
    signature = inspect.signature(cls.__init__, follow_wrapped=False)  # type: ignore[misc]
    parameters = list(signature.parameters.values())[1:]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    allowed = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
    for name in given:
        if name not in allowed:
            way = _own_name(name, allowed) or suggestion(name, allowed)
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}.{way} It takes {', '.join(allowed)}."
            )


def check_assigned(layer: object, name: str, own: Collection[str]) -> None:
    """Raise ``AttributeError`` where an assignment to a layer of this package would do nothing."""
    kind, way = type(layer), _own_name(name, own)
    # a class of the user's may have attributes of any name
    if way and kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        raise AttributeError(f"{kind.__name__} has no attribute {name!r} to assign.{way}")


def _own_name(name: str, own: Collection[str]) -> str:
    """Say what a layer calls what other libraries call ``name``, if anything."""
    wanted = OTHER_NAMES.get(name, (name,))
    found = [each for each in own if each.removesuffix("_setup") in wanted]
    return f" Here it is {' or '.join(found)}." if found else ""


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
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)


def is_default(kind: type, name: str, value: object) -> bool:
    """Whether a value is what an argument of the constructor is where nobody gives it."""
    parameter = inspect.signature(kind.__init__).parameters.get(name)  # type: ignore[misc]
    return parameter is not None and _equal(value, parameter.default)


def _equal(value: object, default: object) -> bool:
    return type(value) is type(default) and not isinstance(value, Tensor) and value == default


def check_step(layer: Any) -> None:
    """Raise where ``step`` takes inputs or states by other names or in another order."""
    kind: Any = type(layer)
    label, states, inputs = kind.__name__, kind.states, kind.inputs
    if not isinstance(inputs, tuple) or inputs[:1] != ("x",):
        raise TypeError(f"{label}.inputs must be a tuple that begins with 'x', got {inputs!r}.")
    for name in inputs:
        layer._check_name(name)
    for name in {"input", "output"}.intersection(states):
        raise ValueError(
            f"{label}.states has {name!r}, the name of what a layer takes or gives. Call the state "
            f"otherwise, prev_{name} say."
        )
    reset = getattr(kind, "reset_states", None)
    if reset is not None and (isinstance(reset, str) or not set(reset) <= set(states)):
        raise ValueError(f"{label}.reset_states must be a tuple from {states}, got {reset!r}.")
    try:
        parameters = inspect.signature(getattr(layer, "step", None)).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return  # a layer without a step, or a callable without a signature
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple([each.name for each in parameters if each.kind in by_position])
    # without a * behind the states, parameters follow; those are passed by name
    if names[1 : len(inputs) + len(states)] != (*inputs[1:], *states):
        raise ValueError(
            f"{label}.step takes {names} by position, and receives the inputs {inputs} and the "
            f"states {states}: name them alike, in this order. A step is a @staticmethod; what it "
            "takes beside x and the states is declared, inputs = ('x', 'modulator')."
        )
