"""Test steps that are edited in place, as IPython's ``%autoreload`` does.

It replaces the parts of the old functions, so that whoever holds one runs the new code; a notebook
cell that runs again makes new ones. Either way a layer that has run before runs the new step.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import sequence, trace_layer
from tracetorch import fuse, snn

SOURCE = """
import torch
from tracetorch import snn

{setting}

def inner(u):
    return {inner}

def helper(u{argument}):
    return inner({helper})

class Own(snn.Neuron):
    states = ("mem",)

    def __init__(self, num_neurons):
        super().__init__(num_neurons)
        self.decay("beta", 0.5)

    @staticmethod
    def step(x, mem, *, beta{keyword}):
        mem = beta * mem + {step}
        return mem, 0.5 * mem
"""
FIRST = {
    "setting": "SLOPE = 2.0",
    "inner": "u",
    "helper": "u",
    "argument": "",
    "step": "helper(x)",
    "keyword": "",
}


def module(**parts: str) -> Any:
    made = types.ModuleType("made_by_a_user")
    exec(compile(SOURCE.format(**{**FIRST, **parts}), "made_by_a_user.py", "exec"), vars(made))
    return made


def reload(old: Any, new: Any) -> None:
    """Replace the parts of functions in place, as ``%autoreload`` does, and the settings."""
    for a, b in ((old.inner, new.inner), (old.helper, new.helper), (old.Own.step, new.Own.step)):
        a.__code__, a.__defaults__, a.__kwdefaults__ = b.__code__, b.__defaults__, b.__kwdefaults__
    vars(old).update({name: value for name, value in vars(new).items() if name.isupper()})


def rebind(old: Any, new: Any) -> None:
    """Bind the global names to new functions, as a cell of a notebook does; keep the class."""
    for name in ("inner", "helper"):
        made = types.FunctionType(vars(new)[name].__code__, vars(old), name, argdefs=None)
        vars(old)[name] = made


# what is edited: before, after
EDITS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "the step": ({}, {"step": "2 * helper(x)"}),
    "a helper": ({}, {"helper": "3 * u"}),
    "what a helper calls": ({}, {"inner": "u - 4"}),
    "a default": ({"argument": ", k=2.0", "helper": "k * u"}, {"argument": ", k=3.0"}),
    "a default that was none": (
        {"helper": "u"},
        {"argument": ", k=2.0", "helper": "k * u"},
    ),
    "a keyword's default": (
        {"keyword": ", k=2.0", "step": "k * x"},
        {"keyword": ", k=3.0", "step": "k * x"},
    ),
    "a global number": ({"helper": "SLOPE * u"}, {"setting": "SLOPE = 5.0", "helper": "SLOPE * u"}),
}
WAYS: dict[str, Callable[[snn.Neuron, Tensor], Tensor]] = {
    "a sequence": lambda layer, x: tt.unroll(layer, x, from_rest=True),
    "without a graph": torch.no_grad()(lambda layer, x: tt.unroll(layer, x, from_rest=True)),
    "in steps": torch.no_grad()(
        lambda layer, x: tt.unroll(layer, x, by="step", from_rest=True),
    ),
    "fed back": lambda layer, x: tt.unroll(
        snn.Recurrent(layer, nn.Linear(3, 3, bias=False).to(x)), x[:1], from_rest=True
    ),
}
# a kernel takes a second to compile
FEW = [("a helper", "without a graph"), ("the step", "in steps")]
SLOW_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in WAYS if way != "in steps"]
X = sequence(4, 2, 3)


def program(layer: Any) -> str:
    return trace_layer(layer, 2, torch.float64).key


COMPILED = [
    pytest.param(edit, way, marks=[] if (edit, way) in FEW else pytest.mark.slow)
    for edit in EDITS
    for way in WAYS
]


@pytest.mark.parametrize(("edit", "way"), COMPILED)
def test_an_edit_in_place_takes_effect(edit: str, way: str) -> None:
    before, after = EDITS[edit]
    old, new = module(**before), module(**{**before, **after})
    layer, run = old.Own(3), WAYS[way]
    first = run(layer, X)
    assert torch.equal(run(layer, X), first)
    reload(old, new)
    with fuse.backend("eager"):
        expected = run(new.Own(3), X)
    found = run(layer, X)
    assert torch.equal(found, expected)
    assert not torch.equal(found, first), "an old kernel would pass"


@pytest.mark.parametrize("way", ["in steps", *SLOW_WAYS])
def test_a_global_function_bound_anew_takes_effect(way: str) -> None:
    old, new = module(), module(inner="u + 7")
    layer, run = old.Own(3), WAYS[way]
    first = run(layer, X)
    rebind(old, new)
    found = run(layer, X)
    assert torch.equal(found, run(new.Own(3), X))
    assert not torch.equal(found, first)


@pytest.mark.parametrize("way", ["in steps", *SLOW_WAYS])
def test_a_global_that_hides_a_builtin_takes_effect(way: str) -> None:
    old = module(helper="abs(u)")
    layer, run = old.Own(3), WAYS[way]
    first = run(layer, X)
    old.abs = lambda u: 2 * u
    assert not torch.equal(run(layer, X), first)


@pytest.mark.slow
def test_a_closure_that_changes_takes_effect() -> None:
    slope = 2.0

    class Own(snn.Neuron):
        states = ("mem",)

        @staticmethod
        def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            return slope * x + mem, mem + x

    layer = Own(3)
    for run in WAYS.values():
        slope = 2.0
        first = run(layer, X)
        slope = 3.0
        assert not torch.equal(run(layer, X), first)


def test_an_edited_step_that_takes_other_states_is_refused_by_a_new_layer() -> None:
    old = module()
    old.Own(3)
    old.Own.step.__code__ = (lambda x, other, *, beta: (x, other)).__code__
    with pytest.raises(ValueError, match=r"states is \('mem',\), but Own.step takes \('other',\)"):
        old.Own(3)


@pytest.mark.slow
def test_a_step_of_this_package_may_be_edited_too() -> None:
    layer = tt.neurons.RefractoryLIF(3).double()
    step = type(layer).step
    code = step.__code__
    try:
        first = [run(layer, X) for way, run in WAYS.items() if way != "fed back"]
        step.__code__ = code.replace(
            co_consts=tuple(2.0 if c == 1.0 else 3 if c == 1 else c for c in code.co_consts)
        )
        found = [run(layer, X) for way, run in WAYS.items() if way != "fed back"]
        with fuse.backend("eager"):
            expected = tt.unroll(layer, X, from_rest=True)
    finally:
        step.__code__ = code
    for a, b in zip(first, found, strict=True):
        assert torch.equal(b, expected)
        assert torch.equal(a, first[0])
