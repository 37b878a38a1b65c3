"""Observe how products were computed within a block: with events or densely, at what density."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Product:
    """Record of a call of a layer that may compute with events.

    Args:
        events: whether it did.
        density: share of inputs that are not 0, of some rows where that was enough to decide;
            ``None``: the input was not looked at.
        crossover: density below which events are faster at this size.
        reason: why the dense product was computed, or ``None``.

    Example:
        >>> Product(events=True, density=0.02, crossover=0.17, reason=None).events
        True
    """

    events: bool
    density: float | None
    crossover: float
    reason: str | None


class _Observers(threading.local):
    def __init__(self) -> None:
        self.active: tuple[list[tuple[nn.Module, Product]], ...] = ()


observers = _Observers()


def report(module: nn.Module, product: Product) -> None:
    """Report a call to the observers of this thread."""
    for observer in observers.active:
        observer.append((module, product))


@contextmanager
def observed_products() -> Iterator[list[tuple[nn.Module, Product]]]:
    """Collect every call, within a block and in this thread, of a layer that may use events.

    Example:
        >>> import tracetorch as tt
        >>> net = nn.Sequential(nn.Linear(256, 256), LIF(256))
        >>> with observed_products() as products:
        ...     _ = tt.unroll(net, torch.zeros(100, 32, 256))
        >>> [(product.events, product.density) for _, product in products]
        [(True, 0.0)]
    """
    products: list[tuple[nn.Module, Product]] = []
    before = observers.active
    observers.active = (*before, products)
    try:
        yield products
    finally:
        observers.active = before
