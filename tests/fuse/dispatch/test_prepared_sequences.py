"""Prepared sequences: none may be taken for another; changes of layers are in `test_changes`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, layer
from tracetorch import snn
from tracetorch.fuse.dispatch.prepared import PreparedCalls
from tracetorch.snn.parameters import (
    bounded_sigmoid,
    clamp,
    fraction,
    negative_softplus,
    sigmoid,
    softplus,
    unbounded,
)

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
        patch.setattr(PreparedCalls, "run", lambda *_: None)
        assert same(found, result(made(), other))
    cell.zero_states()
    assert same(result(cell, x), result(made(), x))


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
    monkeypatch.setattr(PreparedCalls, "run", lambda *_: None)
    assert same(found, result(twin, x))


@pytest.mark.parametrize(
    "constraint",
    [
        *(unbounded, sigmoid, fraction, softplus, negative_softplus),
        *(clamp(-1.0, None), bounded_sigmoid(0.75)),
    ],
    ids=lambda constraint: constraint.name,
)
def test_gradients_of_constraints_are_those_of_autograd(constraint: Any) -> None:
    raw = torch.linspace(-30, 30, 101, requires_grad=True)
    value, grad = constraint(raw), torch.linspace(-2, 3, 101)
    (expected,) = torch.autograd.grad(value, raw, grad)
    found = constraint.gradient.function(grad, raw.detach(), value.detach())
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
    loss.backward(retain_graph=True)
    assert torch.equal(getattr(cell, name).grad, expected[name])


def test_a_layer_keeps_few_prepared_sequences() -> None:
    cell = made()
    for steps in range(1, 13):
        cell.zero_states()
        cell.forward_sequence(sequence()[:1].expand(steps, B, N))
    assert len(cell._prepared.kept) == 8
    assert not copy.deepcopy(cell)._prepared.kept


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
