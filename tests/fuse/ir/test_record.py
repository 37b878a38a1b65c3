"""Views and changes in place are recorded as PyTorch does them, or refused for the true reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases
from tests.fuse.cases import ends, fused
from tracetorch import fuse, snn

Body = Callable[[Tensor, Tensor, Tensor], Tensor]


def neuron(body: Body) -> snn.Neuron:
    """Return a neuron whose new membrane is a function of input, membrane and a parameter."""

    class Recorded(snn.Neuron):
        states = ("mem",)

        def __init__(self) -> None:
            super().__init__(3)
            self.decay("beta", 0.8)
            self.weight("scale", 0.5)

        @staticmethod
        def step(x: Tensor, mem: Tensor, *, beta: Tensor, scale: Tensor) -> Any:
            mem = body(x, beta * mem, scale)
            return mem + x, mem

    layer = Recorded()
    cases.vary(layer)
    return layer


def agrees(body: Body) -> None:
    layer, x = neuron(body), cases.sequence(5, 2, 3, dtype=torch.float32)
    assert fuse.unsupported_reason("cpu", layer, x) is None
    results = [ends(layer, x, run, live=True) for run in (fused("cpu"), cases.stepped)]
    torch.testing.assert_close(*results)


def refused(body: Body, reason: str) -> None:
    x = cases.sequence(5, 2, 3, dtype=torch.float32)
    assert reason in str(fuse.unsupported_reason("cpu", neuron(body), x))


# All of a tensor, in another shape.
VIEWS: list[Callable[[Tensor], Tensor]] = [
    *(lambda t: t.squeeze(), lambda t: t.unsqueeze(0), lambda t: t.view(1, -1)),
    *(lambda t: t.view(-1), lambda t: t.view_as(t), lambda t: t.reshape(-1, 1)),
    *(lambda t: t.flatten(), lambda t: t.unflatten(0, (1, -1)), lambda t: t.expand_as(t)),
    *(lambda t: t[...], lambda t: t[:], lambda t: t[None], lambda t: t.detach()),
    *(lambda t: t.contiguous(), lambda t: t.to(t.dtype), lambda t: t.unsqueeze(-1).squeeze(-1)),
    lambda t: t.flatten().unsqueeze(0).squeeze(0).view_as(t),
]


def changed(view: Callable[[Tensor], Tensor], base: str = "sum") -> Body:
    """Return a body that doubles a tensor through a view, and reads the tensor."""

    def body(x: Tensor, mem: Tensor, scale: Tensor) -> Tensor:
        tensor = mem + x if base == "sum" else x
        part = view(tensor)
        part *= 2
        return tensor + 0.1 * mem + x

    return body


@pytest.mark.parametrize("view", VIEWS)
def test_a_change_of_a_view_is_one_of_its_base(view: Callable[[Tensor], Tensor]) -> None:
    agrees(changed(view))
    agrees(lambda x, mem, scale: (view(x + mem) * view(torch.tanh(mem))).reshape_as(x))
    refused(changed(view, "input"), "changes an argument in place")


def test_what_is_a_copy_a_number_or_all_of_a_parameter() -> None:
    agrees(lambda x, mem, scale: x.clone().add_(mem) * x)
    agrees(lambda x, mem, scale: mem.reshape(-1).clone().add_(1.0).view_as(mem) * x + mem)
    agrees(lambda x, mem, scale: scale[...] * x + scale.squeeze() * mem + scale.expand_as(x) ** 2)
    agrees(lambda x, mem, scale: mem + x * torch.full((1,), 0.3) + torch.tensor([2.0]) * scale)
    agrees(lambda x, mem, scale: mem + torch.tensor(2.0).expand_as(x) * torch.ones(1, 1) * x)
    agrees(lambda x, mem, scale: torch.full_like(x, 3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_between(dtype: torch.dtype) -> None:
    agrees(lambda x, mem, scale: torch.round(3 * (x + mem)).to(dtype).to(x.dtype) * scale)
    agrees(lambda x, mem, scale: mem + x + scale * (x.to(dtype) * 0.5))


def _masked(x: Tensor, mem: Tensor, scale: Tensor) -> Tensor:
    mem = mem + x
    mem[mem > 1] = 0
    return mem


def _factor(x: Tensor, mem: Tensor, scale: Tensor) -> Tensor:
    value = mem + x
    product = value * x
    value += 1
    return value + product


MODIFIED = "needed for gradient computation has been modified by an inplace operation"
FEWER = "fewer values than it is given, which PyTorch refuses"
SHAPED = "gives a parameter another shape, and so is not"
# What a step may not do, and what it is told.
REFUSED: list[tuple[str, Body]] = [
    *(("moves, takes or repeats", changed(view)) for view in (
        lambda t: t.narrow(-1, 0, 1), lambda t: t.select(-1, 0), lambda t: t[0],
        lambda t: t.diagonal(), lambda t: t.unsqueeze(0).expand(4, -1, -1)[0],
        lambda t: t.view(torch.int32), lambda t: t.transpose(0, 1), lambda t: t.permute(1, 0),
        lambda t: t.mT, lambda t: t.t().unsqueeze(0).transpose(1, 2).squeeze(0),
    )),
    *(("reads the size of its input", changed(view)) for view in (
        lambda t: t.chunk(2)[0], lambda t: t.unbind()[0], lambda t: t.view(t.shape),
    )),
    ("reads stride of a value", changed(lambda t: t.as_strided(t.shape, t.stride()))),
    (SHAPED, lambda x, mem, scale: scale.unsqueeze(0) * x + mem),
    (SHAPED, lambda x, mem, scale: scale.mT * x + mem),
    (SHAPED, lambda x, mem, scale: scale[..., :1] * x + mem),
    (SHAPED, lambda x, mem, scale: scale.view(-1) * x + mem),
    ("makes torch.int32 of torch.float32", lambda x, mem, scale: mem + (x.to(torch.int32) + 1)),
    ("makes torch.int64 of torch.float32", lambda x, mem, scale: mem + (x.to(torch.int64) + 1)),
    ("makes torch.int8 of torch.float32", lambda x, mem, scale: x.to(torch.int8).to(x.dtype)),
    ("writes into an argument of aten.add.out",
     lambda x, mem, scale: torch.add(x.detach(), mem.detach(), out=x.detach() + 1)),
    (MODIFIED, lambda x, mem, scale: torch.tanh(mem + x).mul_(0.5) + x),
    (MODIFIED, _factor),
    (MODIFIED, lambda x, mem, scale: torch.exp(mem).view(-1).add_(1.0).view_as(mem) + x),
    # which PyTorch refuses, for a parameter has one value for each neuron
    (FEWER, lambda x, mem, scale: (scale * 1.5).add_(x) + mem),
    (FEWER, lambda x, mem, scale: (scale * 1.5).expand_as(x).add_(x) + mem),
    (FEWER, lambda x, mem, scale: torch.zeros_like(scale).add_(x) + mem),
    ("returns mem in another shape than its input", lambda x, mem, scale: scale * 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "body"), REFUSED)
def test_what_kernels_cannot_do_is_refused(reason: str, body: Body) -> None:
    refused(body, reason)
    if reason in (MODIFIED, FEWER) or "returns mem" in reason:
        message = f"{MODIFIED}|output with shape|single memory location|must return mem"
        with pytest.raises((RuntimeError, ValueError), match=message):
            ends(neuron(body), cases.sequence(3, 2, 3, dtype=torch.float32), cases.stepped)


def test_choices_by_value_name_where() -> None:
    layer, x = neuron(_masked), cases.sequence(5, 2, 3, dtype=torch.float32)
    if fuse.unsupported_reason("cpu", layer, x) is None:
        agrees(_masked)  # PyTorch 2.15 traces it as a choice
    else:
        refused(_masked, "chooses values by aten.index_put_.default. Use torch.where")


def test_one_sample_has_as_many_values_as_a_parameter() -> None:
    layer = neuron(lambda x, mem, scale: torch.zeros_like(scale).add_(x) + mem)
    assert fuse.unsupported_reason("cpu", layer, torch.ones(4, 3)) is None


# Tensors of the step's own, and what joins tensors.
OF_ITS_OWN: list[Body] = [
    lambda x, mem, scale: mem + x * torch.tensor([1.0, 2.0, 3.0]),
    lambda x, mem, scale: mem + x * torch.tensor([[1, 2, 3]]),
    lambda x, mem, scale: mem + x * x.new_tensor([1.0, 2.0, 3.0]) * scale,
    lambda x, mem, scale: mem * 0.9 ** torch.arange(3) + x / (1 + torch.arange(3)),
    lambda x, mem, scale: mem + x * torch.linspace(0.5, 0.9, 3).exp(),
    lambda x, mem, scale: mem + x * torch.full((3,), 0.3),
    lambda x, mem, scale: mem + x * torch.full((2, 1), 0.3),
    lambda x, mem, scale: mem + x * x.new_full((1, 3), 0.3),
    lambda x, mem, scale: mem + x * torch.ones(2, 3),
    lambda x, mem, scale: mem + torch.empty_like(x).copy_(x) * torch.ones(3),
    lambda x, mem, scale: mem + x * float(torch.tensor([1.0, 2.0])[1]),
    lambda x, mem, scale: mem + x * torch.zeros(3).add_(2.0),
    lambda x, mem, scale: mem + (1 + x.abs()) ** torch.tensor([1.0, 2.0, 3.0]),
]
STACKS: list[Body] = [
    lambda x, mem, scale: torch.stack([x, mem]).amax(0),
    lambda x, mem, scale: torch.amin(torch.stack([x, mem, x * mem], -1), (-1,)),
    lambda x, mem, scale: torch.stack([x, mem, 0 * x]).max(0).values,
    lambda x, mem, scale: torch.stack([x, mem, scale * x, x * mem]).sum(dim=0),
    lambda x, mem, scale: torch.stack((x, mem, scale * x), 1).mean(1),
    lambda x, mem, scale: torch.cat([x[None], mem[None]]).sum(0),
    lambda x, mem, scale: torch.stack([x, mem]).add_(1.0).amax(0),
]


@pytest.mark.parametrize("body", [*OF_ITS_OWN, *STACKS])
def test_what_a_kernel_lacks_runs_eagerly_and_says_what_to_write(body: Body) -> None:
    layer, x = neuron(body), cases.sequence(5, 2, 3, dtype=torch.float32)
    reason = str(fuse.unsupported_reason("cpu", layer, x))
    written = "Use torch.maximum" if body in STACKS else "makes a tensor of its own, by aten."
    assert written in reason
    assert body in STACKS or 'self.weight("name", tensor, learnable=False)' in reason
    ways = (lambda layer, x: layer.forward_sequence(x), cases.stepped)
    torch.testing.assert_close(*(ends(layer, x, run, live=True) for run in ways))


# Numbers that PyTorch makes in its default dtype, each read by a float64 step.
Pair = Callable[[Tensor, Tensor], Tensor]
NUMBERS: list[Pair] = [
    lambda a, b: a * torch.where(b > 0, 0.2, -0.1),
    lambda a, b: a * torch.where(b > 0, torch.tensor(0.2), 0.1),
    lambda a, b: a + torch.where(b > 0, 1, 0),
    lambda a, b: torch.where(a > 0, torch.where(b > 0, 0.2, -0.1), a),
    lambda a, b: a * -torch.where(b > 0, 0.2, -0.1),
    lambda a, b: a * torch.maximum(torch.where(b > 0, 0.2, 0.1), torch.tensor(0.15)),
    lambda a, b: a * torch.where(b > 0, 0.2, -0.1).to(a.dtype),
    lambda a, b: a * torch.full((), 0.2) * torch.scalar_tensor(0.2),
    lambda a, b: a + torch.full_like(a, 0.3) * b,
]
# where float32 rounds, a float64 kernel would not
ROUNDED: list[Pair] = [
    lambda a, b: a * (torch.where(b > 0, 0.2, 0.1) * torch.where(a > 0, 0.3, 0.7)),
    lambda a, b: torch.where(torch.where(b > 0, 0.2, 0.1) > 0.2, a, 2 * b),
    lambda a, b: torch.where(torch.full((), 0.2) > 0.2, a, 2 * b),
    lambda a, b: a * torch.where(b > 0, 0.2, 0.1).exp(),
    lambda a, b: a + torch.where(b > 0, 1, 3) / 7,
]


def summing(*functions: Pair) -> snn.Neuron:
    class Summing(snn.Neuron):
        states = tuple(f"s{i}" for i in range(len(functions)))

        @staticmethod
        def step(x: Tensor, *states: Tensor) -> Any:
            new = [f(x, 0.5 * s) for f, s in zip(functions, states, strict=True)]
            return x, *new

    return Summing(5)


def test_numbers_of_the_default_dtype_compile_in_float64() -> None:
    layer, x = summing(*NUMBERS), cases.sequence(6, 3, 5)
    assert fuse.unsupported_reason("cpu", layer, x) is None
    values, grads = ends(layer, x, cases.stepped)
    found, found_grads = ends(layer, x, fused("cpu"))
    torch.testing.assert_close(found, values, rtol=0, atol=0)
    torch.testing.assert_close(found_grads, grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", ROUNDED)
def test_what_float32_rounds_runs_in_pytorch(function: Pair) -> None:
    layer, x = summing(function), cases.sequence(6, 3, 5)
    assert "torch.float32" in str(fuse.unsupported_reason("cpu", layer, x))
