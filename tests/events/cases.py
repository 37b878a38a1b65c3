"""Shared inputs of the tests of events: matrices of a density, and layers whose sums are exact."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.events import mode, observed_products
from tracetorch.events.passes import EventProducts, event_modules
from tracetorch.snn.passes import Pass, ambient

DENSITIES = {"none": 0.0, "one": None, "1 %": 0.01, "50 %": 0.5, "all": 1.0}


@contextmanager
def event_passes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let products choose events within a block, as in a pass by layer."""
    products = EventProducts(modules)
    ambient.current = run = Pass(folded=True)
    try:
        products.enter(run)
        yield
    finally:
        ambient.current = None
        products.leave(run)


def events(*shape: int, density: float | None, weighted: bool = False, seed: int = 0) -> Tensor:
    """Draw spikes of 1, or of either sign and several sizes, at a density; ``None``: one event."""
    generator = torch.Generator().manual_seed(seed)
    if density is None:
        x = torch.zeros(shape, dtype=torch.float64)
        x.flatten()[torch.randint(x.numel(), (1,), generator=generator)] = 1
    else:
        x = (torch.rand(shape, generator=generator) < density).double()
    if weighted:
        x *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
        x *= torch.tensor([0.25, 0.5, 2.0])[torch.randint(3, shape, generator=generator)]
    return x


def dyadic(module: Any, seed: int = 0) -> Any:
    """Set small dyadic parameters: any order of summation gives the same float64."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 8)
    return module


def observed(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Any]]:
    """Call a layer as in a pass by layer; its output, and what was chosen of each product."""
    with event_passes((layer,)), observed_products() as products:
        y = layer(x)
    return y, [product for _, product in products]


@contextmanager
def with_events(*modules: nn.Module) -> Iterator[None]:
    """Compute with events within a block, and fail where a call did not."""
    with mode("always"), event_passes(event_modules(modules)), observed_products() as products:
        yield
    assert products
    assert all(product.events for _, product in products), products


def results(
    layer: nn.Module, x: Tensor, grad: Tensor | None = None, *, by_events: bool
) -> dict[str, Tensor]:
    """Output, and every gradient by name."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with with_events(layer) if by_events else nullcontext():
        y = layer(x)
    if grad is None:
        generator = torch.Generator().manual_seed(1)
        grad = torch.randint(-8, 9, y.shape, generator=generator).to(y.dtype) / 8
    y.backward(grad)
    found = {"output": y.detach(), "x": x.grad}
    return found | {name: p.grad for name, p in layer.named_parameters()}


def check_equal(layer: nn.Module, x: Tensor, grad: Tensor | None = None) -> None:
    """Compare with the dense product, to the bit."""
    expected = results(layer, x, grad, by_events=False)
    found = results(layer, x, grad, by_events=True)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        if isinstance(layer, nn.Linear):
            assert value.stride() == expected[name].stride(), name


def check_close(layer: nn.Module, x: Tensor, grad: Tensor | None = None) -> None:
    """Compare with the dense product, whose sums are in another order."""
    found = results(layer, x, grad, by_events=True)
    for name, expected in results(layer, x, grad, by_events=False).items():
        size = float(expected.abs().max())
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5 * size, msg=name)
