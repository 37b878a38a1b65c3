"""Products, with delays too, pools, sums and the border against NumPy's int64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import integers, snn
from tracetorch.fuse.ir.intervals import interval_of, weighted_sums, with_zero

CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Linear": (lambda: integers.Linear(5, 3, shift=4), (2, 5)),
    "Linear, 4 bits": (lambda: integers.Linear(5, 3, bias=False, weight_bits=4), (2, 5)),
    "Linear, 12 bits": (lambda: integers.Linear(1, 1, weight_bits=12), (2, 1)),
    "Conv1d": (lambda: integers.Conv1d(4, 6, 3, 2, 1, 2, 2, shift=1, weight_bits=6), (2, 4, 9)),
    "Conv2d": (lambda: integers.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), shift=7), (2, 2, 7, 5)),
}
_OF = nn.functional
PRODUCTS = (_OF.linear, _OF.conv1d, _OF.conv2d, torch.Tensor.matmul, torch.Tensor.__matmul__)
DELAYED: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Linear": (lambda: integers.DelayedLinear(5, 3, max_delay=3, shift=4), (5,)),
    "tokens": (lambda: integers.DelayedLinear(5, 2, False, max_delay=1, weight_bits=4), (2, 5)),
    "wide": (lambda: integers.DelayedLinear(1, 1, max_delay=7, weight_bits=12), (1,)),
}


def filled(make: Callable[[], Any], seed: int = 0) -> Any:
    made, generator = make(), torch.Generator().manual_seed(seed)
    layer = getattr(made, "linear", made)
    low, high = integers.limits(layer.weight_bits)
    layer.weight.copy_(torch.randint(low, high + 1, layer.weight.shape, generator=generator))
    if layer.bias is not None:
        layer.bias.copy_(torch.randint(-9000, 9000, layer.bias.shape, generator=generator))
    if made is not layer:
        shape = made.raw_delay.shape
        made.raw_delay.copy_(torch.randint(0, made.max_delay + 1, shape, generator=generator))
    return made


def reference(layer: Any, x: Tensor) -> Tensor:
    """The float layer in float64, whose sums are exact."""
    weight, bias = layer.weight.double() * 2**layer.shift, layer.bias
    bias = None if bias is None else bias.double()
    if isinstance(layer, integers.Linear):
        return nn.functional.linear(x.double(), weight, bias)
    function = getattr(nn.functional, type(layer).__name__.lower())
    sizes = layer.stride, layer.padding, layer.dilation, layer.groups
    result: Tensor = function(x.double(), weight, bias, *sizes)
    return result


@pytest.mark.parametrize("name", CASES)
def test_a_product_is_that_of_its_integers(name: str) -> None:
    make, shape = CASES[name]
    layer = filled(make)
    x = torch.randint(-3, 16, shape, generator=torch.Generator().manual_seed(1)).float()
    y = layer(x)
    assert y.dtype == torch.float32
    assert torch.equal(y.double(), reference(layer, x))
    assert torch.equal(layer.double()(x.double()), reference(layer, x))
    assert layer.weight.dtype == (torch.int16 if layer.weight_bits > 8 else torch.int8)
    assert repr(eval(repr(layer), {**vars(integers)})) == repr(layer)
    source = with_zero(interval_of(x))
    proved, reached = weighted_sums(layer.weight.double() * 2**layer.shift, layer.bias, source)
    assert proved.low <= float(y.min()) <= float(y.max()) <= proved.high
    assert reached.low <= min(proved.low, 0) <= max(proved.high, 0) <= reached.high


def delayed_reference(layer: Any, x: Tensor) -> Any:
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


@pytest.mark.parametrize("name", DELAYED)
def test_a_delayed_product_is_that_of_its_integers(name: str) -> None:
    make, shape = DELAYED[name]
    layer, drawn = filled(make), torch.Generator().manual_seed(1)
    x = torch.randint(-3, 16, (12, 2, *shape), generator=drawn).float()
    wanted = delayed_reference(layer, x)
    whole = tt.unroll(layer, x)
    layer.zero_states()
    cut = torch.cat([tt.unroll(layer, part) for part in x.split(5)])
    double = tt.unroll(copy.deepcopy(layer).double(), x.double(), from_rest=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tt.unroll(layer, x, from_rest=True)
    for found in (tt.unroll(layer, x, by="step", from_rest=True), whole, cut, double, cast):
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


def test_operations_of_a_delayed_product_are_counted() -> None:
    layer = integers.DelayedLinear(4, 3, max_delay=2)
    layer.linear.weight.fill_(1)
    found = tt.metrics.synaptic_operations(layer, torch.ones(5, 1, 4), by="step")
    assert (found.effective, found.dense) == (5 * 4 * 3, 3 * 5 * 4 * 3)


def test_products_and_pools_run_over_time() -> None:
    model = nn.Sequential(
        filled(CASES["Conv2d"][0]),
        integers.SumPool2d(2),
        nn.Flatten(),
        integers.LeakyIntegrator(12, pos_threshold=30_000, state_bits=20),
    )
    x = torch.randint(0, 2, (6, 2, 2, 7, 5), generator=torch.Generator().manual_seed(2)).float()
    y = tt.unroll(model, x)
    tt.zero_states(model)
    assert torch.equal(y, torch.stack([model(step) for step in x]))
    assert {0.0, 1.0} == set(y.unique().tolist())
    assert integers.check_exact(model, x)["3"]["mem"].bits <= 20


@pytest.fixture
def reduced_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", [*CASES, "DelayedLinear", "SumPool1d"])
def test_factors_that_pytorch_may_round_are_multiplied_in_float64(
    name: str, reduced_precision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 keeps 11 bits of a factor, bfloat16 8: here the dtype of each product is watched."""
    others: dict[str, tuple[Any, tuple[int, ...]]] = {
        "DelayedLinear": (integers.DelayedLinear(5, 3, max_delay=2), (5,)),
        "SumPool1d": (integers.SumPool1d(2), (2, 4)),
    }
    layer, shape = others[name] if name in others else (filled(CASES[name][0]), CASES[name][1][1:])
    x = torch.randint(2**11, 2**12, (2, *shape)).float()
    wanted, seen = layer(x), []
    tt.zero_states(layer)

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in PRODUCTS:
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    for precision, expected in (("highest", torch.float32), ("medium", torch.float64)):
        torch.set_float32_matmul_precision(precision)
        with Watched():
            y = layer(x)
        tt.zero_states(layer)
        assert set(seen) == {expected}
        assert y.dtype is torch.float32
        assert torch.equal(y, wanted)
        seen.clear()
    assert integers.layers.rounds_factors("cuda")  # convolutions, unless it is switched off
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not integers.layers.rounds_factors("cuda")
    assert not integers.layers.rounds_factors("cpu")


def test_a_product_compiles_whole() -> None:
    layer, x = filled(CASES["Linear"][0]), torch.ones(2, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_sums_of_windows_are_averages_times_their_size() -> None:
    x = torch.randint(-9, 9, (2, 3, 8, 6), generator=torch.Generator().manual_seed(0)).double()
    found = integers.SumPool2d((2, 3), 2, (1, 0))(x)
    assert torch.equal(found, (nn.functional.avg_pool2d(x, (2, 3), 2, (1, 0)) * 6).round())
    line = x[:, :, 0]
    found = integers.SumPool1d(3, 2, 1)(line)
    assert torch.equal(found, (nn.functional.avg_pool1d(line, 3, 2, 1) * 3).round())


def test_branches_are_added_in_the_unit_of_their_sum() -> None:
    made = integers.Add(nn.Identity(), integers.SumPool1d(1), factors=(3, 2))
    x = torch.tensor([[[1.0, -2.0]]])
    assert torch.equal(made(x), 5 * x)
    assert repr(made).startswith("Add(\n  factors=(3, 2)")
    other = integers.Add(nn.Identity(), integers.SumPool1d(1))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), 5 * x)
    integers.check_exact(made, x[None])
    with pytest.raises(ValueError, match=r"^add\(\) in the model's forward can reach 20971520"):
        integers.check_exact(made, 2.0**22 * torch.ones(1, 1, 1, 1))


def test_the_border_rounds_saturates_and_passes_gradients_within() -> None:
    layer = integers.Quantize(0.1, bits=4, signed=False)
    x = torch.tensor([-1.0, 0.26, 0.95, 9.0], requires_grad=True)
    y = layer(x)
    wanted = np.clip(np.rint(x.detach().numpy() / np.float32(0.1)), 0, 15)
    assert np.array_equal(y.detach().numpy(), wanted)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([0.0, 10, 10, 0]))
    assert repr(layer) == "Quantize(0.1, bits=4, signed=False)"
