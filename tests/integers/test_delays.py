"""Integer products with delays against NumPy's int64, by step and by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import integers, snn

MAKE: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Linear": (lambda: integers.DelayedLinear(5, 3, max_delay=3, shift=4), (5,)),
    "tokens": (lambda: integers.DelayedLinear(5, 2, False, max_delay=1, weight_bits=4), (2, 5)),
    "wide": (lambda: integers.DelayedLinear(1, 1, max_delay=7, weight_bits=12), (1,)),
}
ANY: Any = integers


def filled(name: str) -> Any:
    layer, drawn = MAKE[name][0](), torch.Generator().manual_seed(0)
    product = layer.linear
    low, high = integers.limits(product.weight_bits)
    product.weight.copy_(torch.randint(low, high + 1, product.weight.shape, generator=drawn))
    if product.bias is not None:
        product.bias.copy_(torch.randint(-9000, 9000, product.bias.shape, generator=drawn))
    shape = product.weight.shape
    layer.raw_delay.copy_(torch.randint(0, layer.max_delay + 1, shape, generator=drawn))
    return layer


def inputs(name: str, steps: int = 12) -> Tensor:
    shape = (steps, 2, *MAKE[name][1])
    return torch.randint(-3, 16, shape, generator=torch.Generator().manual_seed(1)).float()


def reference(layer: Any, x: Tensor) -> Any:
    """Return the sums in int64: a product for each lag, of the weights that it delays."""
    product, given = layer.linear, x.long().numpy()
    weight, delay = product.weight.long().numpy(), layer.delay.long().numpy()
    found = []
    for t in range(len(given)):
        total: Any = 0
        for lag in range(layer.max_delay + 1):
            at = torch.tensor(given[t - lag] if t >= lag else 0 * given[0]).double()
            chosen = torch.tensor(np.where(delay == lag, weight, 0)).double()
            total = total + (at @ chosen.T).long().numpy()
        total = total << product.shift
        if product.bias is not None:
            total = total + product.bias.numpy()
        found.append(total)
    return np.stack(found)


@pytest.mark.parametrize("name", MAKE)
def test_a_delayed_product_is_that_of_its_integers(name: str) -> None:
    layer, x = filled(name), inputs(name)
    wanted = reference(layer, x)
    stepped = torch.stack([layer(step) for step in x])
    layer.zero_states()
    whole = tt.unroll(layer, x)
    layer.zero_states()
    cut = torch.cat([tt.unroll(layer, part) for part in x.split(5)])
    double = tt.unroll(copy.deepcopy(layer).double(), x.double(), from_rest=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tt.unroll(layer, x, from_rest=True)
    for found in (stepped, whole, cut, double, cast):
        assert np.array_equal(found.double().numpy(), wanted)


def test_a_recurrence_with_delays_is_exact_by_layer_and_by_step() -> None:
    torch.manual_seed(0)
    connection = integers.DelayedLinear(3, 3, max_delay=4, delay=torch.arange(9.0).view(3, 3) % 5)
    connection.linear.weight.copy_(torch.randint(-60, 90, (3, 3)))
    layer = snn.Recurrent(integers.LeakyIntegrator(3, pos_threshold=100), connection)
    x = torch.randint(0, 60, (30, 2, 3)).float()
    found = tt.unroll(layer, x, from_rest=True)
    assert torch.equal(tt.unroll(layer, x, by="step", from_rest=True), found)
    assert 0.1 < float(found.mean()) < 0.9
    integers.check_exact(layer, x)


@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_a_delayed_sum_beyond_the_exact_range_is_refused_by_name(kind: str) -> None:
    size, delay = 64, torch.arange(64.0)[None] % 5
    layer: Any
    if kind == "integers":
        layer = integers.DelayedLinear(size, 1, False, max_delay=4, delay=delay, shift=12)
        layer.linear.weight.fill_(-128)
    else:
        layer = snn.DelayedLinear(size, 1, False, max_delay=4, delay=delay)
        layer.linear.weight.data.fill_(-(2.0**19))
    model = nn.Sequential(layer, integers.LeakyIntegrator(1, state_bits=24))
    # of the last step alone nothing has arrived that is larger than it holds
    with pytest.raises(ValueError, match=r"0 \(DelayedLinear\) can reach 33554432"):
        integers.check_exact(model, torch.ones(1, 1, size))
    layer.linear.weight.data.fill_(1)
    integers.check_exact(model, torch.ones(6, 1, size))


def test_delays_between_two_steps_and_their_width_are_refused() -> None:
    layer, x = filled("Linear"), inputs("Linear")
    layer.raw_delay[0, 0], layer.linear.weight[0, 0] = 1.5, 3
    with pytest.raises(ValueError, match=r"0 \(DelayedLinear\) gets, holds or returns what is no"):
        integers.check_exact(nn.Sequential(layer), x)
    layer.sigma = 0.5
    with pytest.raises(ValueError, match=r"has sigma=0\.5, and integers take delays in"):
        layer(x[0])
    with pytest.raises(TypeError, match=r"float32 or float64, got torch.float16: x.float\(\)"):
        layer(x[0].half())


def test_operations_of_a_delayed_product_are_counted() -> None:
    layer = integers.DelayedLinear(4, 3, max_delay=2)
    layer.linear.weight.fill_(1)
    found = tt.metrics.synaptic_operations(layer, torch.ones(5, 1, 4), by="step")
    assert (found.effective, found.dense) == (5 * 4 * 3, 3 * 5 * 4 * 3)


def test_integers_with_delays_are_not_initialised() -> None:
    model = nn.Sequential(integers.DelayedLinear(4, 3, max_delay=2), snn.LIF(3))
    with pytest.raises(ValueError, match="there is nothing to initialise"):
        tt.init.fluctuation_(model)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ANY.DelayedLinear(2, 3, max_delay=2, delay=0.5), ValueError, "whole steps, got 0.5"),
    (lambda: ANY.DelayedLinear(2, 3, max_delay=2, delay=3.0), ValueError, "between 0 and max_"),
    (lambda: ANY.DelayedLinear(2, 3, max_delay=0), ValueError, "max_delay must be at least 1"),
    (lambda: ANY.DelayedLinear(2, 3, max_delay=1, shift=17), ValueError, "shift must be 0 to 16"),
    (lambda: ANY.DelayedLinear(2, 3, max_delay=1, weight_bits=1), ValueError, "2 to 16, got 1"),
    (lambda: ANY.DelayedLinear(2, 3, max_delay=1)(torch.ones(1, 4)), ValueError, "has 2 neurons"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("assign", [False, True])
def test_delays_that_are_assigned_or_loaded_are_whole(assign: bool) -> None:
    layer = filled("Linear")
    before = layer.raw_delay.clone()
    for given in (1.5, 0.5 * before + 0.25):
        with pytest.raises(ValueError, match=r"delay must be whole steps, got .*Round it"):
            layer.delay = given
    trained = snn.DelayedLinear(5, 3, max_delay=3, delay=1.25).raw_delay.detach()
    values = {**layer.state_dict(), "raw_delay": trained}
    model = nn.Sequential(layer)
    with pytest.raises(
        RuntimeError, match=r"0\.raw_delay: holds 1\.25, and the layer has integers of 0 to 3"
    ):
        model.load_state_dict({f"0.{key}": value for key, value in values.items()}, assign=assign)
    assert torch.equal(layer.raw_delay, before)
    layer.delay = 2
    assert bool((layer.raw_delay == 2).all())
    layer.load_state_dict({**values, "raw_delay": before}, assign=assign)
    assert torch.equal(layer.raw_delay, before)
