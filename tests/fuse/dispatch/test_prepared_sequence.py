"""Layers that change between two sequences: what was prepared must not be believed too long."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, layer
from tracetorch import snn
from tracetorch.functional import sigmoid_surrogate
from tracetorch.fuse.dispatch import prepared_sequence
from tracetorch.fuse.dispatch.prepared_sequence import OwnMethods, PreparedSequences
from tracetorch.snn.parameters import CONSTRAINT_GRADIENTS, softplus

T, B, N = 5, 3, 4


def made() -> Any:
    torch.manual_seed(0)
    return snn.LIF(N, beta=0.7)


def sequence(dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1), dtype=dtype)


def result(cell: Any, x: Tensor) -> dict[str, Any]:
    """Run a sequence; return outputs, states and gradients by name, or the error."""
    cell.zero_grad()
    x = x.detach().requires_grad_(x.is_floating_point())
    try:
        y, _ = cell.forward_sequence(x)
        if y.requires_grad:
            (y.square().sum() + cell.mem.sum()).backward()
    except Exception as error:
        return {"error": (type(error), str(error))}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in cell.named_parameters()}
    return {"y": y.detach(), "mem": cell.mem.detach(), "x": x.grad, **grads}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    if found.keys() != expected.keys():
        return False
    return all(
        a is b or a == b
        if not isinstance(a, Tensor)
        else isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(found.values(), expected.values(), strict=True)
    )


class Halved(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw / 2


def _parametrize(cell: Any) -> None:
    nn.utils.parametrize.register_parametrization(cell, "raw_beta", Halved())


def _override(name: str) -> Callable[[Any], None]:
    """Give an instance a method of its own, which halves or doubles something."""

    def change(cell: Any) -> None:
        method = getattr(cell, name)

        def own(*args: Any, **kwargs: Any) -> Any:
            value = method(*args, **kwargs)
            if name == "step_kwargs":
                return {**value, "beta": value["beta"] / 2}
            if name == "states_for":
                return [state + 1 if isinstance(state, Tensor) else state for state in value]
            raise ValueError("refused by an override")

        vars(cell)[name] = own

    return change


def _class_override(name: str) -> Callable[[Any], None]:
    def change(cell: Any) -> None:
        instance = copy.deepcopy(cell)
        _override(name)(instance)
        own = vars(instance)[name]
        kind = type(cell)
        cell.__class__ = type("Own", (kind,), {name: lambda self, *a, **k: own(*a, **k)})

    return change


def _other_step(x: Tensor, mem: Tensor, *rest: Any, beta: Tensor, **kwargs: Any) -> Any:
    mem = beta * mem + x / 2
    return mem * 2, mem, *rest


def _in_place(cell: Any) -> None:
    with torch.no_grad():
        cell.raw_beta.sub_(1.0)


def _data(cell: Any) -> None:
    cell.raw_beta.data = cell.raw_beta.data - 1.0


def _constraint(cell: Any) -> None:
    cell._declared.constraints["beta"] = softplus


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda cell: None,
    "a surrogate": lambda cell: setattr(cell, "pos_spike", sigmoid_surrogate(3.0)),
    "the reset": lambda cell: setattr(cell, "reset", "zero"),
    "a flag": lambda cell: setattr(cell, "detach_reset", True),
    "averaging": lambda cell: setattr(cell, "beta_ema", True),
    "the neuron dimension": lambda cell: setattr(cell, "dim", 0),
    "the number of neurons": lambda cell: setattr(cell, "num_neurons", 2 * N),
    "the step": lambda cell: vars(cell).update(step=_other_step),
    "a constraint": _constraint,
    "a parameter in place": _in_place,
    "a parameter's data": _data,
    "a parameter": lambda cell: setattr(cell, "raw_beta", nn.Parameter(torch.zeros(N))),
    "the rank of a parameter": lambda cell: setattr(cell, "raw_beta", nn.Parameter(torch.ones(()))),
    "a parameter of a wrong size": lambda c: setattr(c, "raw_beta", nn.Parameter(torch.ones(2))),
    "the dtype of parameters": lambda cell: cell.double(),
    "a frozen parameter": lambda cell: cell.raw_beta.requires_grad_(False),
    "a parametrization": _parametrize,
    "step_kwargs of the instance": _override("step_kwargs"),
    "check_input of the instance": _override("check_input"),
    "states_for of the instance": _override("states_for"),
    "step_kwargs of the class": _class_override("step_kwargs"),
    "check_input of the class": _class_override("check_input"),
    "states_for of the class": _class_override("states_for"),
    "a live state": lambda cell: setattr(cell, "mem", torch.ones(B, N)),
    "a state with a graph": lambda c: setattr(c, "mem", torch.ones(B, N, requires_grad=True) * 2),
    "a state of another batch": lambda cell: setattr(cell, "mem", torch.ones(B + 1, N)),
    "a state of another dtype": lambda cell: setattr(cell, "mem", torch.ones(B, N).double()),
    "a state that is no tensor": lambda cell: setattr(cell, "mem", 1.0),
    "a negated state": lambda c: setattr(c, "mem", torch._neg_view(torch.ones(B, N))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = made(), sequence()
    first = result(cell, x)
    cell.zero_states()
    CHANGES[name](cell)
    twin = made()
    CHANGES[name](twin)
    found = result(cell, x)
    with monkeypatch.context() as patch:
        patch.setattr(PreparedSequences, "run", lambda *_: None)
        expected = result(twin, x)
    assert same(found, expected)
    if name != "nothing" and "graph" not in name:
        assert not same(found, first), "a layer that is not looked at again would pass"


@contextmanager
def believed() -> Iterator[None]:
    """A fault: what was prepared is not compared with the layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared_sequence._PreparedSequence, "fits", lambda *_: True)
        patch.setattr(OwnMethods, "hold", lambda *_: True)
        yield


SEEN_BY_COMPARISON = (
    *("a surrogate", "the reset", "a flag", "averaging", "the neuron dimension"),
    *("the number of neurons", "the step", "a constraint"),
    *(
        f"{m} of the {o}"
        for m in ("step_kwargs", "check_input", "states_for")
        for o in ("instance", "class")
    ),
)


@pytest.mark.parametrize("name", SEEN_BY_COMPARISON)
def test_without_the_comparison_a_change_would_be_missed(name: str) -> None:
    cell, x = made(), sequence()
    first = result(cell, x)
    cell.zero_states()
    CHANGES[name](cell)
    with believed():
        assert same(result(cell, x), first)


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
    "a subclass": lambda x: x.as_subclass(Sub),
    "negated": lambda x: torch._neg_view(x),
    "on another device": lambda x: x.to("meta"),
}


class Sub(Tensor):
    """A tensor subclass."""


@pytest.mark.parametrize("name", INPUTS)
def test_another_input_is_not_taken_for_the_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, x = made(), sequence()
    result(cell, x)
    cell.zero_states()
    other = INPUTS[name](x)
    if name == "on another device":
        with pytest.raises((RuntimeError, NotImplementedError)):
            cell.forward_sequence(other)
        return
    found = result(cell, other)
    with monkeypatch.context() as patch:
        patch.setattr(PreparedSequences, "run", lambda *_: None)
        assert same(found, result(made(), other))
    cell.zero_states()
    assert same(result(cell, x), result(made(), x))


PLACES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "with a graph": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "the eager backend": lambda: tt.fuse.backend("eager"),
    "the numba backend": lambda: tt.fuse.backend("numba"),
}


@pytest.mark.parametrize("second", PLACES)
@pytest.mark.parametrize("first", PLACES)
def test_places_may_alternate(first: str, second: str) -> None:
    cell, x = made(), sequence()
    expected, _ = made().forward_sequence(x)
    for place in (first, second, first):
        cell.zero_states()
        with PLACES[place]():
            y, _ = cell.forward_sequence(x)
        assert torch.equal(y, expected)
        assert y.requires_grad is (place not in ("no_grad", "inference_mode"))


def test_a_backend_requested_by_name_that_cannot_run_raises() -> None:
    cell, x = made(), sequence()
    cell.forward_sequence(x)
    with tt.fuse.backend("triton"), pytest.raises(RuntimeError, match="triton backend cannot run"):
        cell.forward_sequence(x)


def test_functional_call_uses_the_parameters_that_are_given() -> None:
    cell, x = made(), sequence()
    cell.forward_sequence(x)
    cell.zero_states()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            return cell.forward_sequence(x)[0]

    given = torch.full((N,), -1.0, requires_grad=True)
    y = torch.func.functional_call(Whole(), {"cell.raw_beta": given}, (x,))
    (grad,) = torch.autograd.grad(y.sum(), given)
    other = made()
    other.raw_beta = nn.Parameter(given.detach().clone())
    expected, _ = other.forward_sequence(x)
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(grad, other.raw_beta.grad)


def test_hooks_of_parameters_run_once_and_may_change_the_gradient() -> None:
    cell, x = made(), sequence()
    plain = result(made(), x)
    seen: list[Tensor] = []

    def doubled(grad: Tensor) -> Tensor:
        seen.append(grad)
        return 2 * grad

    cell.raw_beta.register_hook(doubled)
    assert torch.equal(result(cell, x)["raw_beta"], 2 * plain["raw_beta"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_those_of_constraints_outside_the_node(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    cell = layer(name, N).to(dtype)
    twin, x = copy.deepcopy(cell), sequence(dtype)
    found = result(cell, x)
    monkeypatch.setattr(PreparedSequences, "run", lambda *_: None)
    assert same(found, result(twin, x))


@pytest.mark.parametrize("constraint", CONSTRAINT_GRADIENTS)
def test_gradients_of_constraints_are_those_of_autograd(constraint: Any) -> None:
    raw = torch.linspace(-30, 30, 101, requires_grad=True)
    value, grad = constraint(raw), torch.linspace(-2, 3, 101)
    (expected,) = torch.autograd.grad(value, raw, grad)
    found = CONSTRAINT_GRADIENTS[constraint].function(grad, raw.detach(), value.detach())
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "is_read"), [("raw_pos_threshold", True), ("raw_beta", False)])
def test_a_parameter_changed_before_backward(name: str, is_read: bool) -> None:
    cell, twin = made(), made()
    expected = result(twin, sequence())
    cell.forward_sequence(sequence())
    cell.zero_states()
    x = sequence().requires_grad_()
    y, _ = cell.forward_sequence(x)
    loss = y.square().sum() + cell.mem.sum()
    with torch.no_grad():
        getattr(cell, name).sub_(1.0)
    if is_read:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        return
    with pytest.raises(RuntimeError, match="was changed in place between the forward and the back"):
        loss.backward(create_graph=True)
    loss.backward(retain_graph=True)
    assert torch.equal(getattr(cell, name).grad, expected[name])


def test_a_layer_keeps_few_prepared_sequences() -> None:
    cell = made()
    for steps in range(1, 9):
        cell.zero_states()
        cell.forward_sequence(sequence()[:1].expand(steps, B, N))
    assert len(cell._sequences.prepared) == 4
    assert not copy.deepcopy(cell)._sequences.prepared
