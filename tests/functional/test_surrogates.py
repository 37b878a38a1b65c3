import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.cases import SURROGATES
from tracetorch import functional, snn, unroll
from tracetorch.functional import Surrogate, surrogates

IDS = [type(surrogate).__name__ for surrogate in SURROGATES]


def sigmoid_derivative(u: float, k: float) -> float:
    return k / (2 * math.cosh(k * u / 2)) ** 2


FORMULAS: dict[str, tuple[Surrogate, Callable[[float], float]]] = {
    "atan_surrogate": (
        functional.atan_surrogate(alpha=3.0),
        lambda u: 3 / 2 / (1 + (math.pi / 2 * 3 * u) ** 2),
    ),
    "sigmoid_surrogate": (
        functional.sigmoid_surrogate(slope=7.0),
        lambda u: sigmoid_derivative(u, 7.0),
    ),
    "fast_sigmoid_surrogate": (
        functional.fast_sigmoid_surrogate(slope=10.0),
        lambda u: 1 / (1 + 10 * abs(u)) ** 2,
    ),
    "triangular_surrogate": (
        functional.triangular_surrogate(width=2.0),
        lambda u: max(0.0, 1 - abs(u) / 2) / 2,
    ),
    "boxcar_surrogate": (
        functional.boxcar_surrogate(width=1.5),
        lambda u: 1 / 1.5 if abs(u) < 1.5 / 2 else 0.0,
    ),
    "gaussian_surrogate": (
        functional.gaussian_surrogate(sigma=0.7),
        lambda u: math.exp(-0.5 * (u / 0.7) ** 2) / (0.7 * math.sqrt(2 * math.pi)),
    ),
    "straight_through_surrogate": (functional.straight_through_surrogate(), lambda u: 1.0),
}


def test_formulas_and_shared_cases_cover_every_surrogate() -> None:
    public = {name for name in functional.__all__ if name.endswith("_surrogate")}
    assert set(FORMULAS) == set(IDS) == public


@pytest.mark.parametrize("name", FORMULAS)
def test_derivative_matches_its_formula(name: str) -> None:
    surrogate, formula = FORMULAS[name]
    assert type(surrogate) is getattr(functional, name)
    u = torch.tensor([-4.0, -0.74, -0.3, 0.0, 0.1, 0.76, 1.9, 30.0], dtype=torch.float64)
    u.requires_grad_()
    surrogate(u).sum().backward()
    expected = [formula(value) for value in u.tolist()]
    torch.testing.assert_close(u.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_shared_cases_have_the_default_arguments(surrogate: Surrogate) -> None:
    assert type(surrogate)() == surrogate


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_spikes_and_gradients_are_finite_in_the_input_dtype(surrogate, dtype):
    u = torch.tensor([-1e4, -3.0, -1e-7, -0.0, 0.0, 1e-7, 3.0, 1e4], dtype=dtype).requires_grad_()
    spikes = surrogate(u)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.tensor([float(v > 0) for v in u.tolist()], dtype=dtype))
    spikes.sum().backward()
    assert u.grad.dtype == dtype
    assert bool(torch.isfinite(u.grad).all())
    assert bool((u.grad >= 0).all())
    assert u.grad[4] > 0


def test_infinite_and_nan_inputs() -> None:
    u = torch.tensor([math.inf, -math.inf, math.nan])
    assert functional.atan_surrogate()(u).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_torch_func_grad_and_vmap(surrogate: Surrogate) -> None:
    u = torch.linspace(-1, 1, 6, dtype=torch.float64)
    one_by_one = torch.stack([grad(surrogate)(value) for value in u])
    batched = vmap(grad(surrogate))(u)
    torch.testing.assert_close(batched, one_by_one)
    torch.testing.assert_close(one_by_one, surrogate.derivative(u))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_compiles_without_graph_breaks(surrogate: Surrogate) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda u: surrogate(2 * u), fullgraph=True, backend="aot_eager")
    u = torch.linspace(-1, 1, 6, requires_grad=True)
    out = compiled(u)
    out.sum().backward()
    assert torch.equal(out, (u > 0).float())
    torch.testing.assert_close(u.grad, 2 * surrogate.derivative(2 * u.detach()))
    torch.compiler.reset()


@pytest.mark.parametrize("surrogate", SURROGATES, ids=IDS)
def test_surrogates_pickle_hash_and_print_as_values(surrogate: Surrogate) -> None:
    copy = pickle.loads(pickle.dumps(surrogate))
    assert copy == surrogate
    assert hash(copy) == hash(surrogate)
    assert eval(repr(surrogate), vars(functional)) == surrogate


@pytest.mark.parametrize("surrogate", SURROGATES[:6], ids=IDS[:6])
@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (0.0, ValueError, "must be positive and finite, got 0.0"),
        (-1, ValueError, "must be positive and finite, got -1"),
        (math.inf, ValueError, "must be positive and finite, got inf"),
        (10**400, ValueError, "is too large for a floating-point number"),
        (math.nan, ValueError, "must be positive and finite, got nan"),
        ("2", TypeError, "must be a number, got '2'"),
        (None, TypeError, "must be a number, got None"),
        (True, TypeError, "must be a number, got True"),
    ],
)
def test_invalid_argument_is_named_in_the_error(surrogate, argument, error, message):
    with pytest.raises(error, match=rf"{type(surrogate).__name__}: \w+ {message}"):
        type(surrogate)(argument)


@dataclass(frozen=True)
class WithoutDerivative(Surrogate):
    pass


def test_subclass_without_derivative_is_rejected() -> None:
    with pytest.raises(NotImplementedError, match=r"WithoutDerivative must define derivative\(u\)"):
        WithoutDerivative()(torch.ones(1, requires_grad=True)).sum().backward()


def test_second_derivative_matches_finite_differences() -> None:
    def first_derivative(u: Tensor) -> Tensor:
        return grad(lambda v: functional.atan_surrogate()(v))(u)

    u = torch.tensor(0.3, dtype=torch.float64)
    step = 1e-6
    numeric = (first_derivative(u + step) - first_derivative(u - step)) / (2 * step)
    torch.testing.assert_close(grad(first_derivative)(u), numeric, rtol=1e-6, atol=1e-8)


def test_the_list_of_all_has_every_public_surrogate_at_its_defaults() -> None:
    public = [getattr(functional, name) for name in functional.__all__ if "_surrogate" in name]
    assert {kind() for kind in public} == set(surrogates.SURROGATES)
    assert len(surrogates.SURROGATES) == len(public)


def test_supports_are_where_derivatives_end() -> None:
    ends = {type(each).__name__: each.support for each in surrogates.SURROGATES}
    assert {name: end for name, end in ends.items() if end is not None} == {
        "triangular_surrogate": 1.0,
        "boxcar_surrogate": 0.5,
    }
    for other in surrogates.SURROGATES:
        cut = functional.compact_support(other, 0.75)
        assert cut.support == min(0.75, other.support or 1.0)
        u = torch.tensor([-2.0, -0.76, -0.3, 0.0, 0.74, 0.75, 3.0]).requires_grad_()
        spikes = cut(u)
        assert torch.equal(spikes, other(u))
        (found,) = torch.autograd.grad(spikes.sum(), u)
        assert torch.equal(found, torch.where(u.abs() < 0.75, other.derivative(u), 0.0))
        assert bool((found[u.detach().abs() >= cut.support] == 0).all())
        assert pickle.loads(pickle.dumps(cut)) == cut == eval(repr(cut), vars(functional))


def test_compact_support_compiles_in_a_layer() -> None:
    torch.compiler.reset()
    for surrogate in (functional.atan_surrogate(), functional.sigmoid_surrogate(2.0)):
        layer = snn.LIF(3, surrogate_derivative=functional.compact_support(surrogate, 0.5))
        x = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        run = torch.compile(
            lambda x, layer=layer: unroll(layer, x, from_rest=True), backend="eager"
        )
        grads = [
            torch.autograd.grad(f.sum(), x)[0] for f in (run(x), unroll(layer, x, from_rest=True))
        ]
        assert torch.equal(*grads)
    torch.compiler.reset()
