"""Compile random neurons built of ordinary operations, and compare them with their eager steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tests import cases
from tests.fuse.cases import ends, fused
from tracetorch import fuse, snn

SEEDS = range(60)
# Operations that keep numbers of order 1 of that order, and have no jumps but at whole numbers.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "leaky_relu": F.leaky_relu,
    "softshrink": F.softshrink,
    "sin": torch.sin,
    "atan": torch.atan,
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": lambda a: torch.exp(-a.abs()),
    "log1p": lambda a: torch.log1p(a.abs()),
    "sqrt": lambda a: torch.sqrt(a * a + 0.1),
    "square": lambda a: torch.square(a.clamp(-2, 2)),
    "erf": torch.erf,
    "asinh": torch.asinh,
    "nan_to_num": torch.nan_to_num,
    "fmod": lambda a: torch.fmod(a, 3.0),
    "remainder": lambda a: a % 4.0,
    "frac": torch.frac,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": lambda a, b: a * torch.tanh(b),
    "div": lambda a, b: a / (1 + b.abs()),
    "add alpha": lambda a, b: torch.add(a, b, alpha=0.3),
    "lerp": lambda a, b: torch.lerp(a, b, 0.1),
    "lerp tensor": lambda a, b: torch.lerp(a, b, torch.sigmoid(b)),
    "addcmul": lambda a, b: torch.addcmul(a, a.tanh(), b.tanh(), value=0.5),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, 1 + a * a, value=0.2),
    "hypot": lambda a, b: torch.hypot(a, b + 3),
    "logaddexp": torch.logaddexp,
    "maximum": torch.maximum,
    "fmin": torch.fmin,
    "atan2": lambda a, b: torch.atan2(a, 1 + b * b),
    "where": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "copysign": lambda a, b: torch.copysign(a, b + 0.01),
    "div trunc": lambda a, b: a + torch.div(a, 1 + b.abs(), rounding_mode="trunc"),
    "div floor": lambda a, b: a + torch.div(a, 1 + b.abs(), rounding_mode="floor"),
    "clamp": lambda a, b: torch.clamp(a, min=-b.abs() - 0.1),
}


def random_neuron(seed: int) -> snn.Neuron:
    """Return a neuron of two states whose step is eight random operations."""
    draw = random.Random(seed)
    plan: tuple[tuple[bool, Callable[..., Tensor], int, int], ...] = ()
    for known in range(4, 12):
        operation: Any = draw.choice([*UNARY.values(), *BINARY.values()])
        is_unary = any(operation is each for each in UNARY.values())
        plan += ((is_unary, operation, draw.randrange(known), draw.randrange(known)),)

    class RandomNeuron(snn.Neuron):
        states = ("mem", "trace")

        def __init__(self) -> None:
            super().__init__(5)
            self.decay("beta", 0.8)
            self.threshold("base", 1.0)

        @staticmethod
        def step(x: Tensor, mem: Any, trace: Any, *, beta: Any, base: Any, spike: Any) -> Any:
            numbers = [x, mem, trace, beta * mem + x]
            for is_unary, operation, first, second in plan:
                a, b = numbers[first], numbers[second]
                numbers.append(operation(a) if is_unary else operation(a, b))
            mem = torch.tanh(numbers[-1] + numbers[3])
            return spike(mem - 0.5 * base), mem, torch.lerp(trace, numbers[-2].clamp(-3, 3), 0.1)

    layer = RandomNeuron()
    cases.vary(layer)
    return layer


def test_random_neurons_compile() -> None:
    x = torch.ones(3, 2, 5)
    reasons = [fuse.unsupported_reason("cpu", random_neuron(seed), x) for seed in SEEDS]
    refused = [reason for reason in reasons if reason is not None]
    assert len(refused) <= 2, refused


@pytest.mark.parametrize("seed", SEEDS)
def test_random_neuron_equals_its_eager_step(seed: int) -> None:
    layer = random_neuron(seed).double()
    x = cases.sequence(6, 3, 5)
    values, grads = ends(layer, x, cases.stepped, live=True)
    found, found_grads = ends(layer, x, fused("cpu"), live=True)
    assert torch.equal(found["output"], values["output"])
    torch.testing.assert_close(found, values, rtol=1e-11, atol=1e-11)
    assert found_grads.keys() == grads.keys()
    torch.testing.assert_close(found_grads, grads, rtol=1e-9, atol=1e-9)


# Numbers that PyTorch makes in its default dtype, each read by a float64 step.
NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where": lambda a, b: a * torch.where(b > 0, 0.2, -0.1),
    "where of tensors": lambda a, b: a * torch.where(b > 0, torch.tensor(0.2), 0.1),
    "where of integers": lambda a, b: a + torch.where(b > 0, 1, 0),
    "nested": lambda a, b: torch.where(a > 0, torch.where(b > 0, 0.2, -0.1), a),
    "neg": lambda a, b: a * -torch.where(b > 0, 0.2, -0.1),
    "maximum": lambda a, b: a * torch.maximum(torch.where(b > 0, 0.2, 0.1), torch.tensor(0.15)),
    "cast": lambda a, b: a * torch.where(b > 0, 0.2, -0.1).to(a.dtype),
    "full": lambda a, b: a * torch.full((), 0.2),
    "scalar": lambda a, b: a * torch.scalar_tensor(0.2),
    "full of the shape": lambda a, b: a + torch.full(a.shape, 0.3) * b,
}
# where float32 rounds, a float64 kernel would not
ROUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda a, b: a * (torch.where(b > 0, 0.2, 0.1) * torch.where(a > 0, 0.3, 0.7)),
    "comparison": lambda a, b: torch.where(torch.where(b > 0, 0.2, 0.1) > 0.2, a, 2 * b),
    "of a number": lambda a, b: torch.where(torch.full((), 0.2) > 0.2, a, 2 * b),
    "exp": lambda a, b: a * torch.where(b > 0, 0.2, 0.1).exp(),
    "division of integers": lambda a, b: a + torch.where(b > 0, 1, 3) / 7,
}


def summing(named: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> snn.Neuron:
    functions = tuple(named.values())

    class Summing(snn.Neuron):
        states = tuple(f"s{i}" for i in range(len(functions)))

        def __init__(self) -> None:
            super().__init__(5)

        @staticmethod
        def step(x: Tensor, *states: Tensor) -> Any:
            new = [f(x, 0.5 * s) for f, s in zip(functions, states, strict=True)]
            return x, *new

    return Summing()


def test_numbers_of_the_default_dtype_compile_in_float64() -> None:
    layer, x = summing(NUMBERS), cases.sequence(6, 3, 5)
    assert fuse.unsupported_reason("cpu", layer, x) is None
    values, grads = ends(layer, x, cases.stepped)
    found, found_grads = ends(layer, x, fused("cpu"))
    for name, value in values.items():
        assert torch.equal(found[name], value), name
    torch.testing.assert_close(found_grads, grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ROUNDED)
def test_what_float32_rounds_runs_in_pytorch(name: str) -> None:
    layer, x = summing({name: ROUNDED[name]}), cases.sequence(6, 3, 5)
    reason = fuse.unsupported_reason("cpu", layer, x)
    assert reason is not None
    assert "torch.float32" in reason
