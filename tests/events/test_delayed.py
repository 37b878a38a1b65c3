import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import examples
from tests.cases import layer as neurons
from tests.events.cases import DENSITIES, dyadic, events
from tracetorch import snn
from tracetorch.events import crossover, mode, observed_products

D = 3

# steps, samples, inputs, outputs
LINEAR = ((1, 1, 1, 1), (9, 2, 17, 5), (40, 3, 33, 16), (90, 13, 8, 130))


def whole(module: Any) -> Any:
    """Set small dyadic weights and whole delays: any order of summation gives the same float64."""
    dyadic(module.linear)
    shape = module.raw_delay.shape
    lags = torch.randint(0, D + 1, shape, generator=torch.Generator().manual_seed(0))
    module.double().raw_delay.data.copy_(lags)
    return module


def results(module: Any, x: Tensor, how: str, cut: int = 0) -> dict[str, Tensor]:
    """Output, last state, and every gradient by name."""
    module.zero_grad()
    module.zero_states()
    x = x.clone().requires_grad_()
    with mode(how), observed_products() as products:
        parts = [tt.unroll(module, part) for part in x.split([cut, len(x) - cut]) if len(part)]
    assert all(product.events == (how == "always") for _, product in products)
    y = torch.cat(parts)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randint(-8, 9, y.shape, generator=generator).to(y.dtype) / 8)
    found = {"output": y.detach(), "past": module.past.detach(), "x": x.grad}
    return found | {name: p.grad for name, p in module.named_parameters()}


def check(module: Any, x: Tensor, cut: int = 0, rtol: float = 1e-12) -> None:
    expected = results(module, x, "never", cut)
    found = results(module, x, "always", cut)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # the gradient of the input comes from a Fourier transform
        if rtol == 1e-12 and name != "x" and (name != "raw_delay" or module.sigma == 0):
            assert torch.equal(value, expected[name]), name
        size = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=rtol * size, msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize(("steps", "samples", "inputs", "outputs"), LINEAR)
def test_equals_the_dense_product(steps, samples, inputs, outputs, density, weighted):
    module = whole(snn.DelayedLinear(inputs, outputs, bias=steps > 1, max_delay=D))
    check(module, events(steps, samples, inputs, density=density, weighted=weighted))


@pytest.mark.parametrize("sigma", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_on_any_delays(dtype: torch.dtype, sigma: float) -> None:
    torch.manual_seed(0)
    x = events(120, 9, 40, density=0.1).to(dtype)
    module = snn.DelayedLinear(40, 24, max_delay=7, sigma=sigma)
    check(module.to(dtype), x, rtol=1e-4 if dtype is torch.float32 else 1e-11)


@examples(25)
@given(
    steps=st.integers(1, 40), lead=st.lists(st.integers(1, 3), max_size=2), cut=st.integers(0, 40)
)
def test_any_steps_and_cuts(steps: int, lead: list[int], cut: int) -> None:
    module = whole(snn.DelayedLinear(5, 3, max_delay=D))
    check(module, events(steps, *lead, 2, 5, density=0.2), min(cut, steps))


def test_crossover_follows_the_window() -> None:
    assert crossover(3200, 256, 20, 26) > crossover(3200, 256, 20)
    assert 0.3 < crossover(3200, 256, 256, 26) < 0.6


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        snn.DelayedLinear(40, 24, max_delay=5, sigma=1.0),
        neurons("LIF", 24),
        snn.DelayedLinear(24, 8, max_delay=4),
        neurons("LIF", 8),
    ).to(dtype)


@pytest.mark.parametrize("options", [{}, {"segment": 9}, {"check": True}])
def test_in_a_network(options: Any) -> None:
    net, x = network(), events(30, 5, 40, density=0.1)
    with mode("never"):
        expected = tt.unroll(net, x, by="step", from_rest=True)
    with mode("always"), observed_products() as products:
        y = tt.unroll(net, x, from_rest=True, **options)
    torch.testing.assert_close(y, expected)
    assert products
    assert all(product.events for _, product in products)
    again = copy.deepcopy(net)  # nothing of the pass is left
    assert not {"convolve", "__getstate__"} & set(vars(again[0]))


def test_dense_where_events_cannot_be() -> None:
    reasons = []
    for module, x in (
        (snn.DelayedLinear(4, 4, max_delay=2), torch.ones(3, 2, 4).bfloat16()),
        (snn.DelayedLinear(4, 4, max_delay=2), torch.ones(3, 0, 4)),
    ):
        with mode("always"), observed_products() as products:
            tt.unroll(module, x)
        reasons += [product.reason or "" for _, product in products]
    assert reasons == ["", "there is no step"]


def test_no_second_derivative() -> None:
    module, x = snn.DelayedLinear(4, 3, max_delay=2), torch.ones(5, 2, 4)
    with mode("always"):
        y = tt.unroll(module, x)
    with pytest.raises(RuntimeError, match=r"has no second derivative.*mode\('never'\)"):
        torch.autograd.grad(y.sum(), module.linear.weight, create_graph=True)
