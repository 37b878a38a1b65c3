from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.cases import examples
from tests.events.cases import (
    DENSITIES,
    check_close,
    check_equal,
    dyadic,
    events,
    results,
    with_events,
)

SHAPES = ((1, 1, 1), (63, 17, 5), (40, 16, 16), (70, 33, 129), (1100, 50, 244))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_equals_the_dense_product(rows, inputs, outputs, bias, density, weighted):
    layer = dyadic(nn.Linear(inputs, outputs, bias=bias))
    check_equal(layer, events(rows, inputs, density=density, weighted=weighted))


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_on_any_numbers(dtype: torch.dtype, density: float | None) -> None:
    x = events(2100, 150, density=density).to(dtype) * torch.randn(2100, 150).to(dtype)
    check_close(nn.Linear(150, 70).to(dtype), x, torch.randn(2100, 70).to(dtype))


@examples(40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(0, 100),
)
def test_any_shape(batch: list[int], inputs: int, outputs: int, seed: int) -> None:
    x = events(*batch, inputs, density=0.3, weighted=True, seed=seed)
    check_equal(dyadic(nn.Linear(inputs, outputs), seed), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_event(value: float) -> None:
    layer = dyadic(nn.Linear(20, 18))
    x = events(9, 20, density=0.2)
    x[4, 7] = value
    found = results(layer, x, torch.ones(9, 18).double(), by_events=True)
    expected = results(layer, x, torch.ones(9, 18).double(), by_events=False)
    for name in found:
        assert torch.equal(found[name].isfinite(), expected[name].isfinite()), name
        finite = expected[name].isfinite()
        assert torch.equal(found[name][finite], expected[name][finite]), name


def test_zero_times_infinity_is_skipped() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("inf"), 1.0]]))
        with with_events(layer):
            y = layer(torch.tensor([[0.0, 1.0]]))
        assert y.isfinite().all()
        assert layer(torch.tensor([[0.0, 1.0]])).isnan().all()


def product(kind: str) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(20, 18) if kind == "linear" else nn.Conv2d(5, 20, 3, padding=1)
    return dyadic(layer), events(*((30, 20) if kind == "linear" else (9, 5, 9, 11)), density=0.1)


every_product = pytest.mark.parametrize("kind", ["linear", "convolution"])


@every_product
@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_frozen_parameters_get_no_gradient(names: tuple[str, ...], kind: str) -> None:
    layer, x = product(kind)
    for name in names:
        layer.get_parameter(name).requires_grad_(False)
    expected = results(layer, x, by_events=False)
    for name, value in results(layer, x, by_events=True).items():
        assert value is None if name in names else torch.equal(value, expected[name]), name


def test_without_a_graph() -> None:
    layer = dyadic(nn.Linear(20, 18))
    x = events(30, 20, density=0.1)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            with with_events(layer):
                y = layer(x)
            assert not y.requires_grad
            assert torch.equal(y, layer(x))


def test_a_shared_layer_gets_both_gradients() -> None:
    layer = dyadic(nn.Linear(18, 18))
    x = events(30, 18, density=0.1)
    grads = []
    for by_events in (False, True):
        layer.zero_grad()
        with with_events(layer) if by_events else nullcontext():
            y = layer(layer(x))
        y.sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    assert all(map(torch.equal, *grads))


@every_product
@pytest.mark.parametrize("by_events", [False, True])
def test_weight_changed_in_place_before_backward(by_events: bool, kind: str) -> None:
    layer, x = product(kind)
    with with_events(layer) if by_events else nullcontext():
        y = layer(x.requires_grad_())
    with torch.no_grad():
        layer.get_parameter("weight").mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*version"):
        y.sum().backward()


def test_weight_is_not_kept_where_the_input_has_no_gradient() -> None:
    layer, x = nn.Linear(20, 18), events(30, 20, density=0.1).float()
    with with_events(layer):
        y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(18, 20))


def test_output_may_be_changed_in_place() -> None:
    layer, x = dyadic(nn.Linear(20, 16)), events(30, 20, density=0.1).requires_grad_()
    with with_events(layer):
        y = nn.functional.relu(layer(x), inplace=True)
    y.sum().backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).relu().sum().backward()
    assert torch.equal(found, layer.weight.grad)


def test_saved_lists_are_smaller_than_the_input() -> None:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    layer, x = nn.Linear(700, 16), events(640, 700, density=0.02).float()
    with with_events(layer), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sum(sizes.values()) < x.nbytes / 25


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    layer, x = nn.Linear(150, 70), events(2100, 150, density=0.1).float()
    grad, before, found = torch.randn(2100, 70), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(results(layer, x, grad, by_events=True))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        assert torch.equal(each["output"], found[0]["output"])
        assert torch.equal(each["weight"], found[0]["weight"])


@every_product
def test_second_derivative_and_batched_gradients_are_refused(kind: str) -> None:
    layer, x = product(kind)
    weight = layer.get_parameter("weight")
    with with_events(layer):
        y = layer(x)
    with pytest.raises(RuntimeError, match=r"no second derivative.*tt.events.mode\('never'\)"):
        torch.autograd.grad(y.square().sum(), weight, create_graph=True, retain_graph=True)
    grads = torch.ones(2, *y.shape, dtype=y.dtype)
    with pytest.raises(RuntimeError, match=r"one incoming gradient.*tt.events.mode\('never'\)"):
        torch.autograd.grad(y, weight, grads, is_grads_batched=True)


def test_gradient_that_is_expanded_negated_or_strided() -> None:
    layer, x = dyadic(nn.Linear(20, 16)), events(30, 20, density=0.1)
    complex_grad = torch.complex(torch.zeros(30, 16).double(), events(30, 16, density=0.5))
    check_equal(layer, x, torch.ones(1, 1).double().expand(30, 16))
    check_equal(layer, x, complex_grad.conj().imag)
    check_equal(layer, x, events(16, 30, density=0.5).t())


def test_gradcheck() -> None:
    layer, x = nn.Linear(6, 5).double(), events(7, 6, density=0.4)

    def product(weight: Tensor, bias: Tensor) -> Tensor:
        with with_events(layer):
            y: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)
        return y

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(product, parameters)
