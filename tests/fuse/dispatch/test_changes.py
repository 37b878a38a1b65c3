"""Every change of a layer and of its input, through every way: what eager steps compute.

None of the sequences that are prepared may be taken for another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import stepped
from tests.changes import CHANGES, B, N, T, made, sequence
from tests.test_cell import by_name
from tests.unrolling.models import Whole
from tracetorch import snn
from tracetorch.cell import Constraint
from tracetorch.fuse.dispatch.prepared import PreparedCalls

Run = Callable[[Any, Tensor], Tensor]
# whose runs have no graph, and so no gradients
WITHOUT_GRAPH = ("a compiled step", "a sequence without a graph")
WAYS: dict[str, Run] = {
    "a step with a graph": stepped,
    "a compiled step": torch.no_grad()(stepped),
    "a sequence": lambda layer, x: layer.forward_sequence(x)[0],
    "a sequence without a graph": torch.no_grad()(lambda layer, x: layer.forward_sequence(x)[0]),
    "by layer": tt.unroll,
    "by step": lambda layer, x: tt.unroll(layer, x, by="step"),
    "segments": lambda layer, x: tt.unroll(layer, x, segment=2),
}


def outcome(way: Run, layer: Any, x: Tensor) -> dict[str, Any]:
    """Outputs, the last state and gradients by name; or the kind of error."""
    layer.zero_grad()
    x = x.detach().requires_grad_(x.is_floating_point())
    try:
        y = way(layer, x)
        found: dict[str, Any] = {"y": y.detach(), "mem": layer.mem.detach()}
        if y.requires_grad:
            (y.square().sum() + layer.mem.sum()).backward()
            found["x"] = x.grad
            found |= {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    except Exception as error:
        return {"error": ValueError if isinstance(error, RuntimeError) else type(error)}
    return found


def check(
    found: dict[str, Any], expected: dict[str, Any], *, graph: bool = True, rtol: float = 1e-5
) -> None:
    """Values are equal, and gradients up to the order in which they are summed."""
    if not graph and "y" in expected:
        expected = {name: expected[name] for name in ("y", "mem")}
    assert found.keys() == expected.keys()
    if "error" in found:
        assert found == expected
        return
    for name, value in found.items():
        to = {"rtol": 0, "atol": 0} if name in ("y", "mem") else {"rtol": rtol, "atol": rtol / 10}
        torch.testing.assert_close(value, expected[name], **to, msg=name)


@cache
def truth(change: str) -> dict[str, Any]:
    """What eager steps compute of ``sequence()``, once for all ways."""
    twin = made()
    CHANGES[change](twin)
    with tt.fuse.backend("eager"):
        return outcome(stepped, twin, sequence())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect_on_every_way(change: str, way: str) -> None:
    layer, x = made(), sequence()
    for _ in range(2):
        assert "error" not in outcome(WAYS[way], layer, x)
        layer.zero_states()
    CHANGES[change](layer)
    found = outcome(WAYS[way], layer, x)
    if found == {"error": ValueError} and way in ("by layer", "segments"):
        assert "forward_step" in change or "error" in truth(change)
        return
    check(found, truth(change), graph=way not in WITHOUT_GRAPH)


METHODS = [f"{name} of the class" for name in ("forward_step", "step_kwargs", "the step")]
COMPILED = [(change, "by layer") for change in CHANGES]
for _way in ("a sequence", "a step with a graph"):
    COMPILED += [(change, _way) for change in (*METHODS, "forward_step of the instance")]


@pytest.mark.slow
# Dynamo asks a state with a graph for its .grad, as it does any tensor
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("change", "way"), COMPILED)
def test_a_change_takes_effect_after_a_compilation(change: str, way: str) -> None:
    layer, x = made(), sequence()
    torch._dynamo.reset()
    run = torch.compile(lambda x: WAYS[way](layer, x), backend="aot_eager")

    def again() -> dict[str, Any]:
        return outcome(lambda _, x: run(x), layer, x)

    for _ in range(2):
        assert "error" not in again()
        layer.zero_states()
    if way != "by layer":  # an unchanged layer is compiled once
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert "error" not in again()
        layer.zero_states()
    CHANGES[change](layer)
    found = again()
    if change == "a state that is no tensor":  # Dynamo makes one of it, of another shape
        assert found["error"] in (TypeError, ValueError)
    else:
        check(found, truth(change))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect_in_an_export(change: str) -> None:
    layer, x = made(), sequence()
    tt.export.step(layer, x[0])
    layer.zero_states()
    CHANGES[change](layer)
    layer.zero_states()
    twin = made()
    CHANGES[change](twin)
    twin.zero_states()
    with torch.no_grad(), tt.fuse.backend("eager"):
        expected = outcome(stepped, twin.eval(), x)
    try:
        program = tt.export.step(layer, x[0]).module()
        states = tt.export.initial_states(tt.export.step(layer, x[0]), B)
        steps = []
        for step in x.unbind():
            y, states = program(step, states)
            steps.append(y)
    except Exception as error:
        # A program's batch is its first dimension: neurons there are refused by name.
        refused = "the neuron dimension" in change and "neurons, the input has" in str(error)
        assert "error" in expected or "override" in change or " of " in change or refused
        return
    assert torch.allclose(torch.stack(steps), expected["y"])


@pytest.mark.parametrize("max_delay", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect_in_a_recurrence(change: str, max_delay: int) -> None:
    def run(layer: Any, x: Tensor) -> Tensor:
        torch.manual_seed(2)
        made = snn.DelayedLinear(N, N, max_delay=max_delay) if max_delay else nn.Linear(N, N)
        whole = snn.Recurrent(layer, made)
        return stepped(whole, x) if layer is twin else whole.forward_sequence(x)[0]

    layer, twin, x = made(), made(), sequence()
    outcome(run, layer, x)
    layer.zero_states()
    CHANGES[change](layer)
    CHANGES[change](twin)
    with tt.fuse.backend("eager"):
        expected = outcome(run, twin, x)
    found = outcome(run, layer, x)
    if "error" in expected:
        assert "error" in found
    else:  # across a matrix product it is equal to rounding
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Partial(snn.Neuron):
    """A neuron whose states, options and constraint may change in ways of its own."""

    states = ("mem", "syn")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.use = True
        self.decay("beta", 0.5)

    @property
    def active_states(self) -> tuple[str, ...]:
        return ("mem", "syn") if self.use else ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor, syn: Any, *, beta: Tensor, **rest: Any) -> Any:
        syn = None if syn is None else 0.5 * syn + x
        mem = beta * mem + (x if syn is None else syn) * (2 if rest.get("gain") else 1)
        return mem, mem, syn


class Scaled:
    """A constraint that can change without being replaced."""

    k = 1.0

    def __call__(self, raw: Tensor) -> Tensor:
        return self.k * torch.sigmoid(raw)


OWN: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "fewer states": (lambda la: None, lambda la: setattr(la, "use", False)),
    "more states": (lambda la: setattr(la, "use", False), lambda la: setattr(la, "use", True)),
    "one more option": (lambda la: None, lambda la: la.option("gain", True)),
    "a constraint that changes": (
        lambda la: la._declared.constraints.update(beta=Constraint("scaled", Scaled())),
        lambda la: setattr(la.constraints["beta"].value, "k", 0.5),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", OWN)
def test_changes_that_a_neuron_makes_possible(change: str, way: str) -> None:
    first, then = OWN[change]
    layer, twin, x = Partial(N), Partial(N), sequence()
    first(layer)
    for _ in range(2):
        outcome(WAYS[way], layer, x)
        layer.zero_states()
    then(layer)
    layer.zero_states()
    first(twin)
    then(twin)
    with tt.fuse.backend("eager"):
        expected = outcome(stepped, twin, x)
    assert "error" not in expected
    check(outcome(WAYS[way], layer, x), expected, graph=way not in WITHOUT_GRAPH)


@pytest.mark.parametrize("way", ["a compiled step", "a sequence", "by layer"])
def test_a_patched_base_class_is_seen(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made(), sequence()
    outcome(WAYS[way], layer, x)
    layer.zero_states()
    states = snn.Neuron._states_for

    def own(*args: Any, **named: Any) -> Any:
        return [None if each is None else each + 1 for each in states(*args, **named)]

    monkeypatch.setattr(snn.Neuron, "_states_for", own)
    with tt.fuse.backend("eager"):
        expected = outcome(stepped, made(), x)
    check(outcome(WAYS[way], layer, x), expected, graph=way not in WITHOUT_GRAPH)


def test_an_option_that_comes_and_goes_finds_its_cell_again() -> None:
    layer = made()
    first, surrogate = layer.cell, layer.pos_spike
    layer(torch.ones(B, N))
    layer.zero_states()
    assert layer.cell is first, "states are no part of it"
    CHANGES["a surrogate"](layer)
    assert layer.cell is not first
    layer.pos_spike = surrogate
    assert layer.cell is first
    assert len(layer._declared.cells) == 2


def test_a_cell_is_frozen_and_a_state_no_parameter() -> None:
    layer = made()
    with pytest.raises(AttributeError, match="cannot assign to field 'dim'"):
        layer.cell.dim = 0
    with pytest.raises(TypeError):
        layer.cell.options["reset"] = "zero"
    with pytest.raises(TypeError, match=r"mem of Own.* is a state, and no parameter"):
        layer.mem = nn.Parameter(torch.zeros(B, N))
    assert layer.mem is None
    with pytest.raises(NotImplementedError, match=r"Neuron has no step\. Write it as a static met"):
        snn.Neuron(3)(torch.ones(1, 3))


# Other inputs, places and parameters

INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "shorter": lambda x: x[:2],
    "a smaller batch": lambda x: x[:, :2],
    "float64": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
    "no time": lambda x: x[:0],
    "no batch": lambda x: x[:, :0],
    "other strides": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand(T, B, N),
    "more dimensions": lambda x: x[:, :, None].expand(T, B, 2, N),
    "too few neurons": lambda x: x[..., :2],
    "integers": lambda x: x.long(),
    "a subclass": lambda x: x.as_subclass(type("Sub", (Tensor,), {})),
    "negated": lambda x: torch._neg_view(x),
    "on another device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_another_input_is_not_taken_for_the_first(name, monkeypatch) -> None:
    run, layer, x = WAYS["a sequence"], made(), sequence()
    first, other = outcome(run, layer, x), INPUTS[name](x)
    layer.zero_states()
    found = outcome(run, layer, other)
    with monkeypatch.context() as patch:
        patch.setattr(PreparedCalls, "run", lambda *_: None)
        check(found, outcome(run, made(), other), rtol=0)
    layer.zero_states()
    check(outcome(run, layer, x), first, rtol=0)


PLACES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "with a graph": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "the eager backend": lambda: tt.fuse.backend("eager"),
    "the cpu backend": lambda: tt.fuse.backend("cpu"),
}


@pytest.mark.parametrize("second", PLACES)
@pytest.mark.parametrize("first", PLACES)
def test_places_may_alternate(first: str, second: str) -> None:
    layer, x = made(), sequence()
    expected, _ = made().forward_sequence(x)
    for place in (first, second, first):
        layer.zero_states()
        with PLACES[place]():
            y, _ = layer.forward_sequence(x)
        assert torch.equal(y, expected)
        assert y.requires_grad is (place not in ("no_grad", "inference_mode"))
    with tt.fuse.backend("triton"), pytest.raises(RuntimeError, match="triton backend cannot run"):
        layer.forward_sequence(x)


def test_functional_call_uses_the_parameters_that_are_given() -> None:
    layer, other, x = made(), made(), sequence()
    tt.unroll(layer, x)
    given = torch.full((N,), -1.0, requires_grad=True)
    y = torch.func.functional_call(Whole(layer), {"model.raw_beta": given}, (x,))
    (grad,) = torch.autograd.grad(y.sum(), given)
    other.raw_beta = nn.Parameter(given.detach().clone())
    expected, _ = other.forward_sequence(x)
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(grad, other.raw_beta.grad)


def test_hooks_of_parameters_run_once_and_may_change_the_gradient() -> None:
    layer, x = made(), sequence()
    seen: Any = []
    plain = outcome(WAYS["a sequence"], made(), x)
    layer.raw_beta.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    found = outcome(WAYS["a sequence"], layer, x)
    assert torch.equal(found["raw_beta"], 2 * plain["raw_beta"])
    assert len(seen) == 1


@by_name
def test_gradients_of_constraints_are_those_of_autograd(constraint: Any) -> None:
    raw = torch.linspace(-30, 30, 101, requires_grad=True)
    value, grad = constraint(raw), torch.linspace(-2, 3, 101)
    (expected,) = torch.autograd.grad(value, raw, grad)
    found = constraint.gradient.function(grad, raw.detach(), value.detach())
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "is_read"), [("raw_pos_threshold", True), ("raw_beta", False)])
def test_a_parameter_changed_before_backward(name: str, is_read: bool) -> None:
    layer, x = made(), sequence()
    expected = outcome(WAYS["a sequence"], made(), x)
    layer.forward_sequence(x)
    layer.zero_states()
    y, _ = layer.forward_sequence(x.requires_grad_())
    loss = y.square().sum() + layer.mem.sum()
    with torch.no_grad():
        getattr(layer, name).sub_(1.0)
    if is_read:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        return
    loss.backward()
    assert torch.equal(getattr(layer, name).grad, expected[name])


@pytest.mark.parametrize("case", ["a kernel", "a refused kernel", "a step with gaps"])
@torch.no_grad()
def test_a_state_is_drawn_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Drawn(snn.LIF):
        def initial_state(self, name: str, *settings: Any) -> Tensor:
            drawn.append(name)
            return super().initial_state(name, *settings)

    layer, x = Drawn(3), torch.rand(5, 2, 3)
    tt.unroll(layer, x, from_rest=True)
    for prepared in layer._prepared.kept.values():
        if case == "a refused kernel":
            monkeypatch.setitem(prepared.program.refused, x.device, "it was wrong")
    drawn.clear()
    if case == "a step with gaps":
        layer(torch.rand(3, 2).t())
    else:
        tt.unroll(layer, x, from_rest=True)
    assert drawn == ["mem"]
