"""Products by events, of linear layers and convolutions: those of PyTorch, to the bit."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
from tests.fuse.kernels import lesser_machine
from tracetorch.fuse.runtime import machine_code, threads, threefry
from tracetorch.snn import SparseLinear
from tracetorch.unrolling import unroll

SHAPES = ((1, 1, 1), (63, 17, 5), (40, 16, 16), (70, 33, 129), (1100, 50, 244))
every_density = pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_product = pytest.mark.parametrize("kind", ["linear", "convolution"])


def product(kind: str) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(20, 18) if kind == "linear" else nn.Conv2d(5, 20, 3, padding=1)
    return dyadic(layer), events(*((30, 20) if kind == "linear" else (9, 5, 9, 11)), density=0.1)


@pytest.mark.parametrize("weighted", [False, True])
@every_density
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_equals_the_dense_product(rows, inputs, outputs, bias, density, weighted):
    layer = dyadic(nn.Linear(inputs, outputs, bias=bias))
    check_equal(layer, events(rows, inputs, density=density, weighted=weighted))


# the shape of the images; outputs, kernel, stride, padding and dilation
WINDOWS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "padded": ((19, 5, 9, 11), (20, 3, 1, 1)),
    "one": ((1, 1, 1, 1), (1, 1)),
    "stride": ((3, 8, 9, 12), (16, 3, 2, 1)),
    "stride past the kernel": ((3, 4, 9, 11), (6, (2, 5), 7, 2)),
    "dilation": ((5, 3, 10, 9), (33, 3, 1, 2, 2)),
    "all differ": ((33, 4, 9, 11), (70, (3, 2), (2, 1), (0, 2), (1, 3))),
    "same": ((2, 4, 7, 9), (5, (3, 5), 1, "same", 2)),
    "valid": ((2, 4, 7, 9), (5, 2, 1, "valid", 2)),
    "wide padding": ((2, 4, 4, 3), (130, 3, 1, 4)),
}


@pytest.mark.parametrize("weighted", [False, True])
@every_density
@pytest.mark.parametrize("name", WINDOWS)
def test_equals_the_dense_convolution(name: str, density: float | None, weighted: bool) -> None:
    shape, window = WINDOWS[name]
    layer = dyadic(nn.Conv2d(shape[1], *window, bias=weighted))
    check_equal(layer, events(*shape, density=density, weighted=weighted))


@every_density
@every_dtype
def test_agrees_on_any_numbers(dtype: torch.dtype, density: float | None) -> None:
    x = events(2100, 150, density=density).to(dtype) * torch.randn(2100, 150).to(dtype)
    check_close(nn.Linear(150, 70).to(dtype), x, torch.randn(2100, 70).to(dtype))
    images = events(40, 16, 12, 12, density=density).to(dtype) * torch.randn(12, 12).to(dtype)
    check_close(nn.Conv2d(16, 24, 3, padding=1).to(dtype), images)


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


@every_product
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_event(value: float, kind: str) -> None:
    layer, x = product(kind)
    with torch.no_grad():  # the dense convolution multiplies infinity by 0, which is NaN
        layer.get_parameter("weight").abs_().add_(1)
    x.view(-1)[447] = value
    found, expected = (
        results(layer, x, torch.ones_like(layer(x)), by_events=by_events)
        for by_events in (True, False)
    )
    for name in found if kind == "linear" else ("output", "x"):
        assert torch.equal(found[name].isfinite(), expected[name].isfinite()), name
        finite = expected[name].isfinite()
        assert torch.equal(found[name][finite], expected[name][finite]), name
    assert not found["weight"].isfinite().all()


def test_zero_times_infinity_is_skipped() -> None:
    layer, x = nn.Linear(2, 1), torch.tensor([[0.0, 1.0]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("inf"), 1.0]]))
        with with_events(layer):
            assert layer(x).isfinite().all()
        assert layer(x).isnan().all()


@every_product
@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_frozen_parameters_get_no_gradient(names: tuple[str, ...], kind: str) -> None:
    layer, x = product(kind)
    for name in names:
        layer.get_parameter(name).requires_grad_(False)
    expected = results(layer, x, by_events=False)
    for name, value in results(layer, x, by_events=True).items():
        assert value is None if name in names else torch.equal(value, expected[name]), name


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_graph(context: Callable[[], Any]) -> None:
    layer, x = product("linear")
    with context():
        with with_events(layer):
            y = layer(x)
        assert not y.requires_grad
        assert torch.equal(y, layer(x))


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "twice": lambda layer, x: layer(layer(x)),
    "changed in place": lambda layer, x: nn.functional.relu(layer(x), inplace=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_becomes_of_an_output_changes_no_gradient(call: str) -> None:
    layer, x = dyadic(nn.Linear(18, 18)), events(30, 18, density=0.1)
    grads = []
    for by_events in (False, True):
        with with_events(layer) if by_events else nullcontext():
            y = CALLS[call](layer, x)
        grads.append(torch.autograd.grad(y.sum(), list(layer.parameters())))
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


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(150, 70), (2100, 150)), (nn.Conv2d(16, 24, 3, padding=1), (40, 16, 12, 12))],
)
def test_results_do_not_depend_on_the_number_of_threads(layer: Any, shape: Any) -> None:
    x, before, found = events(*shape, density=0.1).float(), torch.get_num_threads(), []
    x *= torch.randn(shape)
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(results(layer, x, by_events=True))
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


# Kernels written by hand give the same results on processors with narrower registers


def compile_for_less(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Compile from now on for a processor without vector extensions, beside other caches."""
    patch.setenv("TRACETORCH_CACHE", str(folder))
    patch.setattr(machine_code, "this_machine", lesser_machine)
    patch.setattr(machine_code, "_kernels", {})
    patch.setattr(threads, "_kernel", functools.cache(threads._kernel.__wrapped__))


def edges_of(delay: Tensor | None) -> nn.Module:
    edges = torch.stack([torch.arange(900) * 7 % 50, torch.arange(900) * 11 % 44])
    return SparseLinear(50, 44, edges, delay=delay)


def over_edges(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.requires_grad_()
    y = unroll(layer, x, from_rest=True)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def by_events(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return list(results(layer, x, by_events=True).values())


@every_dtype
@pytest.mark.parametrize(
    ("make", "shape", "run", "kernels"),
    [
        (lambda: nn.Linear(50, 244), (300, 50), by_events, 1),
        (lambda: nn.Conv2d(3, 20, 3, 2, 1, (1, 2)), (5, 3, 9, 8), by_events, 1),
        (lambda: edges_of(None), (9, 3, 50), over_edges, 3),
        (lambda: edges_of(torch.arange(900) % 4), (9, 3, 50), over_edges, 3),
    ],
    ids=["linear", "convolution", "edges", "delayed edges"],
)
def test_sums_do_not_depend_on_the_processor(
    make, shape, run, kernels, dtype, tmp_path, monkeypatch
):
    layer, x = make().to(dtype), events(*shape, density=0.2, weighted=True).to(dtype)
    expected = run(layer, x)
    compile_for_less(tmp_path, monkeypatch)
    torch.testing.assert_close(run(layer, x), expected, rtol=0, atol=0)
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".o"]) >= kernels


@every_dtype
def test_random_numbers_do_not_depend_on_the_processor(dtype, tmp_path, monkeypatch):
    position = torch.arange(1050) * 5_000_000_000
    compile_for_less(tmp_path, monkeypatch)
    found = threefry.compiled_uniforms(position, 3, dtype)
    assert list(tmp_path.iterdir())
    torch.testing.assert_close(found, threefry.uniforms(position, 3, dtype), rtol=0, atol=0)
