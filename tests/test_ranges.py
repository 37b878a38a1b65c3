"""Every range that the ``Args:`` of a layer or a function of ``functional`` write is checked.

The sections are read for the words of ranges. Each range becomes values at its ends, beyond them,
NaN and infinity, and each of those is refused.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.cases import NEURONS, layer, sequence
from tracetorch import functional, fuse, neurons, snn
from tracetorch.snn.parameters import (
    BoundedSigmoid,
    Clamp,
    fraction,
    negative_softplus,
    sigmoid,
    softplus,
)

PACKAGES = (snn, neurons, functional)
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
WORDS = re.compile(
    r"\b(positive|negative|above|below|at least|at most|between|finite)\b|\bin [\[(]"
)
# words that are no range of the argument
PROSE = re.compile(
    r"equations above|mV above|``\"uniform\"`` in \(0, 1\)|below zero|``[ab]`` in|just below it"
)
Values = Sequence[object]


def intervals(text: str) -> tuple[list[Any], list[Any]] | None:
    """Return values in a range that is written in a common way, and values out of it."""
    if found := re.search(rf"in ([\[(])({NUMBER}), ({NUMBER})([\])])", text):
        low, high = float(found[2]), float(found[3])
        ends = [(found[1], low), (found[4], high)]
        inside = [(low + high) / 2, *(end for bracket, end in ends if bracket in "[]")]
        outside = [low - 0.1, high + 0.1, *(end for bracket, end in ends if bracket in "()")]
        return inside, outside
    if found := re.search(rf"at least ({NUMBER})", text):
        least = float(found[1])
        if least >= 1:
            return [int(least)], [int(least) - 1, -1, 1.5]
        return [1.01 * least], [0.99 * least, 0.0, -1.0]
    if re.search(r"\bnot negative\b", text):
        return [0.0, 1.0], [-1.0, -1e-30]
    if re.search(r"\bpositive\b", text):
        return [0.5], [0.0, -1.0]
    if re.search(r"\bfinite\b", text):
        return [-1.0, 0.0, 2.0], []
    return None


# what no common way writes: values in the range, and out of it
WRITTEN: dict[tuple[str, str], tuple[Values, Values]] = {
    ("decay_to_halflife", "decay"): ([0.5], [0.0, 1.0, -0.1, 1.1]),
    ("RF", "omega"): ([3.14, -3.14], [math.pi, -math.pi, 4.0]),
    ("BRF", "omega"): ([99.0, -99.0], [100.0, -100.0, 200.0]),
    ("QIF", "v_critical"): ([-64.0], [-65.0, -70.0]),
    ("Delay", "delay"): ([0.0, 4.0], [-0.5, 4.5]),
    ("DelayedLinear", "delay"): ([0.0, 4.0], [-0.5, 4.5]),
    ("SparseLinear", "delay"): ([0, 4], [-1, 0.5]),
    **dict.fromkeys(
        [("in_degree_mask", "degree"), ("in_degree_edges", "degree")], ([0, 3], [-1, 4, 1.5])
    ),
    **dict.fromkeys(
        [("distance_mask", "kernel"), ("distance_edges", "kernel")],
        ([torch.zeros_like, torch.ones_like], [lambda d: 1 + d, torch.sum]),
    ),
}
PLACES: dict[str, Any] = {"outputs": torch.rand(3, 2), "inputs": torch.rand(4, 2)}
# arguments that a call needs besides the one that is tried
OTHERS: dict[str, dict[str, Any]] = {
    "BatchNormThroughTime": {"num_neurons": 3, "steps": 4},
    "BRF": {"num_neurons": 3, "omega": 0.5},
    "Delay": {"num_neurons": 3, "max_delay": 4},
    "DelayedLinear": {"in_features": 3, "out_features": 2, "max_delay": 4},
    "random_mask": {"outputs": 3, "inputs": 3},
    "random_edges": {"outputs": 3, "inputs": 3},
    "in_degree_mask": {"outputs": 2, "inputs": 3},
    "in_degree_edges": {"outputs": 2, "inputs": 3},
    "distance_mask": PLACES,
    "distance_edges": {**PLACES, "kernel": torch.ones_like, "radius": 2.0},
    "SparseLinear": {"in_features": 3, "out_features": 2, "edges": torch.zeros(2, 4).long()},
    "PoissonInput": {"neurons": torch.arange(3), "probability": 0.5},
    **{name: {} for name in functional.__all__},
    "compact_support": {"surrogate": functional.atan_surrogate()},
}
# a trace that never decays has the decay 1
INFINITE_ENDS = {("halflife_to_decay", "num_steps"), ("time_constant_to_decay", "tau")}


def entries(thing: Any) -> Iterator[tuple[str, str]]:
    """Yield the arguments of an ``Args:`` section, each with its text."""
    text = inspect.cleandoc(thing.__doc__ or "")
    section = re.search(r"^Args:\n((?: +.*\n|\n)*)", text + "\n", flags=re.MULTILINE)
    for entry in re.split(r"\n(?=    \S)", section[1].rstrip() if section else ""):
        names, _, description = " ".join(entry.split()).partition(":")
        for name in re.split(r",\s*", names):
            yield name, description


# callable, argument and text of every range that is written
RANGES = [
    (name, argument, text)
    for package in PACKAGES
    for name in package.__all__
    for argument, entry in entries(getattr(package, name))
    if argument and WORDS.search(text := PROSE.sub("", entry))
]


def call(name: str, **given: Any) -> Any:
    """Call a constructor or function, all other arguments given."""
    if name == "Threshold":  # a part of a layer, which checks it
        return snn.LeakyIntegrator(3, pos_threshold_setup=snn.Threshold(**given))
    thing = next(getattr(package, name) for package in PACKAGES if name in package.__all__)
    return thing(**{**OTHERS.get(name, {"num_neurons": 3}), **given})


def values(name: str, argument: str, text: str) -> tuple[Values, list[Any]]:
    """Return the values of an argument that are in its range, and others."""
    inside, outside = WRITTEN.get((name, argument)) or intervals(text) or ([], [])
    assert inside, f"{name}: {argument}: no values are known for {text!r}"
    infinite = [] if (name, argument) in INFINITE_ENDS else [math.inf]
    return inside, [*outside, math.nan, -math.inf, *infinite]


@pytest.mark.parametrize(("name", "argument", "text"), RANGES, ids=lambda v: str(v)[:24])
def test_written_ranges_are_checked(name: str, argument: str, text: str) -> None:
    inside, outside = values(name, argument, text)
    for value in inside:
        call(name, **{argument: value})
    for value in outside:
        with pytest.raises((TypeError, ValueError)) as error:
            call(name, **{argument: value})
        assert argument in str(error.value) or str(value) in str(error.value)


def test_ranges_are_found() -> None:
    found = {(name, argument) for name, argument, _ in RANGES}
    assert len(found) > 50
    assert {("EIF", "delta"), ("QIF", "v_critical"), ("BRF", "dt")} <= found
    assert {("MultiLevelLIF", "levels"), ("atan_surrogate", "alpha")} <= found
    assert ("GLIF", "reset_gate") in found
    assert WRITTEN.keys() <= found


# While it is learned, a parameter stays in its range: what holds of every value.
HOLDS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    sigmoid: lambda value: (value > 0) & (value < 1),
    fraction: lambda value: (value > 0) & (value < 1),
    softplus: lambda value: value > 0,
    negative_softplus: lambda value: value < 0,
}


@pytest.mark.parametrize("name", NEURONS)
def test_parameters_stay_in_their_ranges(name: str) -> None:
    bounded = {"bounded": True} if name in ("AdLIF", "SEAdLIF") else {}
    made = layer(name, 3, **bounded)
    texts = dict(entries(type(made) if name != "SEAdLIF" else neurons.AdLIF))
    for argument, constraint in made.constraints.items():
        raw, text = getattr(made, f"raw_{argument}"), texts.get(argument, "in (0, 1)")
        before = raw.detach().clone()
        for far in (-15.0, -1.0, 0.0, 1.0, 15.0, *[-1e3, 1e3] * (constraint.name == "clamp")):
            raw.data.fill_(far)
            value = getattr(made, argument)
            if isinstance(constraint.value, Clamp):
                if constraint.value.low is not None:
                    assert (value >= constraint.value.low).all()
                if constraint.value.high is not None:
                    assert (value <= constraint.value.high).all()
                if constraint.above is not None:
                    assert (value > getattr(made, constraint.above)).all()
            elif isinstance(constraint.value, BoundedSigmoid):
                assert ((value >= constraint.low) & (value < 1)).all()
            elif constraint in HOLDS:
                assert HOLDS[constraint](value).all()
            else:  # free: nothing is written
                assert not WORDS.search(PROSE.sub("", text)), (argument, text)
        raw.data.copy_(before)


OUT_OF_RANGE = [
    ("EIF", "delta", -3.0),
    ("EIF", "delta", 0.0),
    ("AdEx", "delta", -2.0),
    ("QIF", "v_critical", -80.0),
    ("QIF", "v_critical", -65.0),
    ("BRF", "omega", 250.0),
    ("BRF", "omega", -100.0),
    ("RF", "omega", 4.0),
]


@pytest.mark.parametrize(("name", "argument", "far"), OUT_OF_RANGE)
def test_what_is_learned_out_of_range_is_held_and_comes_back(name, argument, far):
    made = getattr(neurons, name)(3)
    x = (NEURONS[name] * sequence(6, 2, 3, dtype=torch.float32)).requires_grad_()
    getattr(made, f"raw_{argument}").data.fill_(far)
    with fuse.backend("eager"):
        output, seen = made.forward_sequence(x, record=made.states[:1])
    raw = getattr(made, f"raw_{argument}")
    (gradient,) = torch.autograd.grad(output.sum() + seen[made.states[0]].sum(), raw)
    assert output.isfinite().all()
    assert gradient.isfinite().all()
    value = getattr(made, argument)
    assert (value != far).all()
    toward = torch.autograd.grad(value.sum(), raw)[0]
    assert (toward == 1).all()  # the gradient passes, so that it can come back


def test_bound_follows_the_other_parameter_in_compiled_steps() -> None:
    made, x = neurons.QIF(3), torch.full((1, 3), 10.0)
    with torch.no_grad():
        for rest in (-65.0, -45.0, -30.0):
            made.raw_v_rest.fill_(rest)
            made.zero_states()
            found = made(x)
            state = made.v
            made.zero_states()
            with fuse.backend("eager"):
                assert torch.equal(found, made(x))
            assert torch.equal(made.v, state)
            assert (made.v_critical > made.v_rest).all()


@pytest.mark.parametrize(
    ("name", "option", "good", "bad"),
    [
        ("BRF", "dt", 0.02, (0.0, -1.0, math.nan, math.inf, "0.01")),
        ("AdLIF", "q", 60.0, (math.nan, math.inf, None)),
        ("AdLIF", "detach_reset", True, (1, None)),
        ("RefractoryLIF", "period", 3, (-1, 1.5)),
        ("MultiLevelLIF", "levels", 2, (0, 2.0)),
        ("Izhikevich", "substeps", 2, (0, 1.5)),
    ],
)
def test_options_are_checked_when_assigned(name, option, good, bad):
    made = getattr(neurons, name)(3)
    setattr(made, option, good)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=option):
            setattr(made, option, value)
        assert getattr(made, option) == good


def test_omega_stays_below_that_of_the_step() -> None:
    made = neurons.BRF(3, omega=8.0)
    made.dt = 0.2
    assert (made.omega < 5).all()
    made.dt = 0.01
    assert torch.equal(made.omega, torch.full((3,), 8.0))
