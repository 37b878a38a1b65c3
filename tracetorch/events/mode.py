"""Request how products are computed, with their events or densely, and observe how they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from tracetorch.core.requests import Request, Requests

MODES = ("auto", "always", "never")

_requests = Requests("mode of events", MODES)


class mode(Request):  # noqa: N801 (used as a function, like torch.no_grad)
    """Request how ``tt.unroll`` by layer computes linear layers and convolutions.

    A plain call sets the default of all threads. A ``with`` block takes precedence over it, in its
    own thread alone, as ``torch.no_grad`` does.

    A product with events adds up the rows of the transposed weight that belong to inputs other
    than 0. It agrees with the dense product up to rounding, with one exception: 0 times infinity or
    NaN, in a weight or in a gradient, is NaN in the dense product and is skipped here.

    Args:
        name: ``"auto"``, with events where the input is sparse enough for them to be faster, and
            densely elsewhere; ``"always"``, with events wherever they can be; ``"never"``, densely.

    Raises:
        ValueError: there is no such mode.

    Example:
        >>> with mode("never"):
        ...     requested_mode()
        'never'
        >>> requested_mode()
        'auto'
    """

    requests = _requests


def requested_mode() -> str:
    """Return the mode that is requested in this thread.

    Example:
        >>> requested_mode()
        'auto'
    """
    names = _requests.in_thread.names
    return names[-1] if names else _requests.default


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
    active: tuple[list[tuple[nn.Module, Product]], ...] = ()


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
