"""Every operation against NumPy's int64, its gradient, its range, its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from tests.integers.reference import divided, fitted
from tracetorch import integers
from tracetorch.convert import QuantizedReLU

DTYPES = {torch.float32: 24, torch.float64: 53}
ROUNDINGS = ("floor", "trunc", "nearest", "at_least_one")
dtypes = st.sampled_from(list(DTYPES))


def tensor(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(dtype)


def whole(value: Tensor) -> np.ndarray[Any, Any]:
    numbers = value.detach().double().numpy()
    assert np.array_equal(numbers, np.rint(numbers))
    return numbers.astype(np.int64)


@st.composite
def within(draw: st.DrawFn, spare: int = 0) -> tuple[torch.dtype, list[int]]:
    """A dtype, and integers of which it holds all, with some bits to spare."""
    dtype = draw(dtypes)
    most = 2 ** (DTYPES[dtype] - spare)
    near = st.sampled_from([-most, most, 0, 1, -1, most - 1, 1 - most])
    return dtype, draw(st.lists(st.integers(-most, most) | near, min_size=1, max_size=9))


@given(within(), st.integers(0, 31), st.sampled_from(ROUNDINGS))
def test_shift_right(drawn: tuple[torch.dtype, list[int]], bits: int, rounding: Any) -> None:
    dtype, values = drawn
    expected = divided(np.array(values), 2**bits, rounding)
    x = tensor(values, dtype)
    assert np.array_equal(whole(integers.shift_right(x, bits, rounding)), expected)
    by_tensor = integers.shift_right(x, torch.full_like(x, bits), rounding)
    assert np.array_equal(whole(by_tensor), expected)


EXACT: dict[str, Callable[[int, int], int]] = {
    "floor": lambda product, bits: product >> bits,
    "trunc": lambda product, bits: (abs(product) >> bits) * (1 if product >= 0 else -1),
    "nearest": lambda product, bits: (2 * product + 2**bits) >> (bits + 1),
}


@given(within(), st.integers(0, 12), st.sampled_from(ROUNDINGS[:3]), st.data())
def test_multiply_of_any_integer_with_twelve_bits(
    drawn: tuple[torch.dtype, list[int]], bits: int, rounding: Any, data: st.DataObject
) -> None:
    dtype, values = drawn
    factors = data.draw(
        st.lists(st.integers(-(2**bits), 2**bits), min_size=len(values), max_size=len(values))
    )
    products = [x * y for x, y in zip(values, factors, strict=True)]  # beyond int64, too
    expected = [EXACT[rounding](product, bits) for product in products]
    z = integers.multiply(tensor(values, dtype), tensor(factors, dtype), bits, rounding)
    assert whole(z).tolist() == expected
    number = integers.multiply(tensor(values, dtype), factors[0], bits, rounding)
    assert whole(number)[0] == expected[0]


@given(within(spare=1), st.integers(2, 22), st.booleans())
def test_saturate_and_wrap(drawn: tuple[torch.dtype, list[int]], bits: int, signed: bool) -> None:
    dtype, values = drawn
    x, exact = tensor(values, dtype), np.array(values)
    low, high = integers.limits(bits, signed=signed)
    assert (high - low + 1, low < 0) == (2**bits, signed)
    assert np.array_equal(whole(integers.saturate(x, bits, signed=signed)), exact.clip(low, high))
    wrapped = whole(integers.wrap(x, bits, signed=signed))
    assert np.array_equal(wrapped, (exact - low) % 2**bits + low)
    if signed:
        assert np.array_equal(wrapped, fitted(exact, bits, "wrap"))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 24))
def test_every_width_at_its_ends(bits: int, signed: bool) -> None:
    low, high = integers.limits(bits, signed=signed)
    x = torch.tensor([low - 1.0, low, high, high + 1.0])
    assert integers.saturate(x, bits, signed=signed).tolist() == [low, low, high, high]
    assert integers.wrap(x, bits, signed=signed).tolist() == [high, low, high, low]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), dtypes)
def test_round_floor_trunc(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=dtype)
    numbers = x.double().numpy()
    assert np.array_equal(whole(integers.round(x)), np.rint(numbers))
    assert np.array_equal(whole(integers.floor(x)), np.floor(numbers))
    assert np.array_equal(whole(integers.trunc(x)), np.trunc(numbers))


# of each: a call of one argument, and its derivative at 5 and at -300
GRADIENTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "round": (integers.round, (1.0, 1.0)),
    "floor": (integers.floor, (1.0, 1.0)),
    "trunc": (integers.trunc, (1.0, 1.0)),
    "saturate": (lambda x: integers.saturate(x, 8), (1.0, 0.0)),
    "wrap": (lambda x: integers.wrap(x, 8), (1.0, 1.0)),
    "shift_right": (lambda x: integers.shift_right(x, 3, "at_least_one"), (0.125, 0.125)),
    "multiply": (lambda x: integers.multiply(x, 230, 8), (230 / 256, 230 / 256)),
    "straight_through": (lambda x: integers.straight_through(2 * x, x), (2.0, 2.0)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_straight_through(name: str) -> None:
    function, expected = GRADIENTS[name]
    x = torch.tensor([5.0, -300.0], requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == list(expected)
    # and for functional transforms
    assert vmap(grad(lambda v: function(v).sum()))(x.detach()).tolist() == list(expected)


def test_a_product_has_the_gradient_of_both_factors() -> None:
    x = torch.tensor([100.0], requires_grad=True)
    y = torch.tensor([3.0], requires_grad=True)
    integers.multiply(x, y, 2, "trunc").backward()
    assert (x.grad, y.grad) == (torch.tensor([0.75]), torch.tensor([25.0]))


def test_numbers_of_full_width_are_not_rounded_on_the_way() -> None:
    largest = torch.tensor([2.0**24 - 1, 1 - 2.0**24])
    assert integers.shift_right(largest, 2, "nearest").tolist() == [2.0**22, -(2.0**22)]
    assert integers.multiply(largest, 4095, 12).tolist() == [2**24 - 4097, -(2**24) + 4096]


class OtherClamp(TorchFunctionMode):
    """A release of PyTorch whose ``clamp`` passes no gradient at its ends."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.clamp, Tensor.clamp) and None not in args:
            x, low, high = args
            value = x.detach()
            return torch.where((value > low) & (value < high), x, value.clip(low, high))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [contextlib.nullcontext, OtherClamp])
def test_gradients_at_the_ends_are_those_of_every_release(mode: Any) -> None:
    ends = torch.tensor([-129.0, -128.0, 0.0, 127.0, 128.0], requires_grad=True)
    with mode():
        integers.saturate(ends, 8).sum().backward()
        relu = QuantizedReLU(4, 2.0)
        x = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0], requires_grad=True)
        relu(x).sum().backward()
    assert ends.grad is not None
    assert ends.grad.tolist() == [0, 1, 1, 1, 0]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
