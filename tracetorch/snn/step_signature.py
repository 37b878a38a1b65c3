"""Check that the ``step`` of a class takes its inputs and states by their names, in their order."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

from tracetorch.snn.sequence_layer import SequenceLayer

# of each class what was found to fit: its step, which may be edited in place, states and inputs
_checked: WeakKeyDictionary[type, tuple[object, ...]] = WeakKeyDictionary()


def check_signature(layer: SequenceLayer) -> None:
    """Raise where ``step`` takes inputs or states by other names or in another order."""
    kind: Any = type(layer)
    step = getattr(kind, "step", None)
    declared = (step, getattr(step, "__code__", None), kind.states, kind.inputs)
    if _checked.get(kind) != declared:
        _check(layer, kind)
        _checked[kind] = declared


def check_named(layer: SequenceLayer, step: object, declared: Collection[str]) -> None:
    """Raise where ``step`` takes other parameters and options, by name, than are declared."""
    if type(layer).step_kwargs is not SequenceLayer.step_kwargs:
        return  # it passes what it likes
    try:
        parameters = list(inspect.signature(step).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return  # a callable without a signature
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return
    passed = len(layer.inputs) + len(layer.states)
    named = parameters[passed:]
    untaken = [each for each in declared if each not in {p.name for p in named}]
    missing = [p.name for p in named if p.default is p.empty and p.name not in declared]
    if untaken or missing:
        label = type(layer).__name__
        parts = [f"step has no argument {' and '.join(untaken)}"] if untaken else []
        verb = "is" if len(missing) == 1 else "are"
        parts += [f"{' and '.join(missing)} {verb} not declared"] if missing else []
        brings = " A threshold brings its spike function: self.threshold('theta', 1.0) in __init__."
        raise TypeError(
            f"{label} declares {', '.join(declared) or 'nothing'}, and {label}.step takes "
            f"{', '.join(p.name for p in named) or 'nothing'} by name: {'; '.join(parts)}. "
            f"Name them alike, in __init__ and in step.{brings * ('spike' in missing)}"
        )


def _check(layer: SequenceLayer, kind: Any) -> None:
    label, states, inputs = kind.__name__, kind.states, kind.inputs
    if not isinstance(inputs, tuple) or inputs[:1] != ("x",):
        raise TypeError(
            f"{label}.inputs must be a tuple of names that begins with 'x', got {inputs!r}."
        )
    for name in inputs:
        layer._check_name(name)
    for name in {"input", "output"}.intersection(states):
        raise ValueError(
            f"{label}.states has {name!r}, the name of what a layer takes or gives, in records and "
            f"in compiled loops. Call the state otherwise, prev_{name} say."
        )
    step: Any = getattr(layer, "step", None)  # bound, if it is no static method
    reset = getattr(kind, "reset_states", None)
    if reset is not None and (isinstance(reset, str) or not set(reset) <= set(states)):
        raise ValueError(
            f"{label}.reset_states must be a tuple of names from {states}, got {reset!r}."
        )
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return  # a layer without a step, or a callable without a signature
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return
    names = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    further = inputs[1:]
    # without a * behind the states, parameters follow; those are passed by name
    first = 1 + len(further)
    given, taken = tuple(names[1:first]), tuple(names[first : first + len(states)])
    if given != further:
        raise ValueError(
            f"{label}.inputs is {inputs}, but {label}.step takes {given} after "
            f"{''.join(names[:1])}. It receives the inputs by position, before the states: "
            "name them alike, in one order."
        )
    if taken != states:
        static = inspect.getattr_static(kind, "step")
        lacks = inspect.isfunction(static) and next(iter(inspect.signature(static).parameters), "")
        behind = names[first:]
        begin = next(
            (at for at in range(1, len(behind)) if behind[at:][: len(states)] == [*states]), 0
        )
        raise ValueError(
            f"{label}.states is {states}, but {label}.step takes {taken} after {inputs[-1]}. "
            "It receives the states by position: name them alike, in one order."
            + " Without a self it needs @staticmethod above it."
            * (lacks in inputs)
            + f" Is {' and '.join(behind[:begin])} an input? Then write inputs = "
            f"{(*inputs, *behind[:begin])} in the class." * bool(begin)
        )
