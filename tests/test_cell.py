import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tracetorch import snn
from tracetorch.cell import Constraint
from tracetorch.functional import sigmoid_surrogate
from tracetorch.snn.parameters import (
    bounded_sigmoid,
    clamp,
    fraction,
    negative_softplus,
    sigmoid,
    softplus,
    unbounded,
)

CONSTRAINTS = [unbounded, sigmoid, fraction, softplus, negative_softplus]
CONSTRAINTS += [clamp(-1.0, None), bounded_sigmoid(0.25)]
by_name = pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda each: each.name)


@by_name
def test_inverses_of_constraints(constraint: Constraint) -> None:
    raw = torch.linspace(-0.9, 20, 41, dtype=torch.float64)
    value = constraint(raw)
    assert bool(((value > constraint.low) & (value < constraint.high)).all())
    back = value if constraint.inverse is None else constraint.inverse(value)
    torch.testing.assert_close(back, raw)


@by_name
def test_constraints_are_equal_by_value(constraint: Constraint) -> None:
    for twin in (copy.deepcopy(constraint), pickle.loads(pickle.dumps(constraint))):
        assert twin == constraint
        assert hash(twin) == hash(constraint)
    assert [each for each in CONSTRAINTS if each == constraint] == [constraint]


class Mixed(snn.Neuron):
    """Takes some arguments as they are, and computes others."""

    states = ("mem",)

    def __init__(
        self,
        num_neurons: int,
        beta: Any = 0.5,
        base: float = 1.0,
        gain: float = 2.0,
        spike: Any = sigmoid_surrogate(3.0),  # noqa: B008
    ) -> None:
        super().__init__(num_neurons)
        self.decay("beta", beta)
        self.threshold("base", base + 1.0, surrogate=spike, spike="fires")
        self.option("gain", 2 * gain)

    @staticmethod
    def step(x: Tensor, mem: Any, *, beta: Any, base: Any, fires: Any, gain: Any) -> Any:
        mem = beta * mem + gain * x
        return fires(mem - base), mem


def test_arguments_of_the_constructor_that_are_values() -> None:
    cell = Mixed(2, torch.tensor([0.5, 0.6]), base=3.0).cell
    assert cell.arguments == {"beta": ("beta",), "fires": ("spike",)}
    assert str(cell.call) == "Mixed(2, beta=Tensor[2], base=3.0)"
    assert (cell.call.positional, cell.call.named["base"]) == (("2",), "3.0")
    assert cell.defaults["gain"] == 2.0
    assert list(cell.defaults) == ["num_neurons", "beta", "base", "gain", "spike"]
    both = ("pos_surrogate_derivative", "neg_surrogate_derivative")
    assert snn.BLIF(2).cell.arguments["pos_spike"] == both
    other = snn.BLIF(2, neg_surrogate_derivative=sigmoid_surrogate(3.0)).cell
    assert (other.arguments["pos_spike"], other.arguments["neg_spike"]) == (both[:1], both[1:])


@pytest.mark.parametrize("name", [*cases.LAYERS, *cases.NEURONS])
def test_the_call_makes_a_layer_of_the_same_cell(name: str) -> None:
    made = cases.layer(name)
    again = eval(str(made.cell.call), {**vars(snn), **vars(tt.neurons), **vars(tt.functional)})
    cell, other = made.cell, again.cell
    for part in ("call", "arguments", "constraints", "options", "active", "dim"):
        assert getattr(other, part) == getattr(cell, part)


def test_a_cell_is_current_until_its_class_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each call asks: a step, a method of a base class, and code that is edited in place."""
    cell = Mixed(2).cell
    assert cell.is_current(Mixed)
    assert not cell.is_current(snn.LIF)
    for kind, name in ((Mixed, "step"), (snn.Neuron, "step_kwargs")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, lambda *_, **__: None)
            assert not cell.is_current(Mixed)
    with monkeypatch.context() as patch:
        patch.setattr(
            Mixed.step, "__code__", (lambda x, mem, *, beta, base, fires, gain: x).__code__
        )
        assert not cell.is_current(Mixed)
    assert cell.is_current(Mixed)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_have_declarations_of_their_own(copied: Any) -> None:
    layer = Mixed(2)
    twin = copied(layer)
    twin = pickle.loads(twin) if isinstance(twin, bytes) else twin
    assert (twin.cell.call, twin.cell.arguments) == (layer.cell.call, layer.cell.arguments)
    twin.option("more", 1.0)
    twin.state("mem", 0.5)
    twin.raw_beta = nn.Parameter(torch.ones(2))
    assert "more" not in layer._options
    assert "initial_mem" not in dict(layer.named_buffers())
    assert not torch.equal(layer.raw_beta, twin.raw_beta)


def test_a_copied_layer_has_hooks_of_its_own() -> None:
    layer, calls = snn.LIF(3), list[str]()
    layer.register_forward_hook(lambda *_: calls.append("original"))
    twin = copy.copy(layer)
    twin.register_forward_hook(lambda *_: calls.append("copy"))
    layer(torch.rand(2, 3))
    assert calls == ["original"]
    calls.clear()
    twin(torch.rand(2, 3))
    assert calls == ["original", "copy"], "it begins with those of the original"
