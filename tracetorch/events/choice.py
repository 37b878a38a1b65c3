"""Choose how products are computed, with their events or densely, and observe how they were."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from tracetorch.core.requests import Request, Requests

MODES = ("auto", "always", "never")

_requests = Requests("mode of events", MODES)


class mode(Request):  # noqa: N801 (used as a function, like torch.no_grad)
    """Request how ``tt.unroll`` by layer computes linear layers and convolutions.

    A plain call sets the default of all threads. A ``with`` block takes precedence over it, in its
    own thread alone, as ``torch.no_grad`` does.

    A product with events agrees with the dense one up to rounding, with one exception: 0 times
    infinity or NaN, in a weight or in a gradient, is NaN in the dense product and is skipped here.

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


# Nanoseconds of the forward pass and the weight's gradient together, in float32 on two threads;
# on one all take about twice as long. Measured by benchmarks/event_crossover.py.
_DENSE = 0.023  # a multiplication of the dense product
_READ = 0.3  # a value of the input that the dense product reads
_ADDED = 0.041  # a value of a table's row that is added
_LISTED = 2.5  # an event that is listed
_SCANNED = 0.4  # a value of the input that is scanned
_WRITTEN = 0.9  # a value of the output
_TRANSPOSED = 1.5  # a weight that is transposed
_CALLED = 300_000.0  # the calls around the kernels


@lru_cache(maxsize=1024)
def crossover(rows: int, inputs: int, outputs: int) -> float:
    """Return the density at which both take the same time; 0 where the dense product always wins.

    Args:
        rows: products of a vector with the weight: time steps times samples.
        inputs: of the layer.
        outputs: of the layer.

    Example:
        >>> 0.3 < crossover(6400, 256, 256) < 0.4, crossover(1, 16, 16)
        (True, 0.0)
    """
    values = max(1, rows * inputs)
    # for each value of the input
    dense = _READ + _DENSE * outputs
    fixed = _SCANNED + _WRITTEN * outputs / max(1, inputs) + _CALLED / values
    fixed += _TRANSPOSED * outputs / max(1, rows)
    return max(0.0, (dense - fixed) / (_ADDED * outputs + _LISTED))


# The same of convolutions, of 3x3 kernels from 16 channels to 32, and 32 to 64. A multiplication
# of the dense one takes 0.013 there and 0.022 here; events take the same time for each in both.
_CONV_DENSE = 0.016
_CONV_ADDED = 0.015
_CONV_LISTED = 3.4
_CONV_SCANNED = 0.5
_CONV_WRITTEN = 1.1  # a value of the output that is transposed
_CONV_SUMMED = 2.5  # a value of a partial sum of the weight's gradient: cleared, and added
_CONV_TABLE = 1.5  # a weight that is transposed, and as much for its gradient back
_CONV_CHANNELS = 8  # with fewer, lists are too short
CONV_TASKS = 16  # of the weight gradient, whose partial sums are added in their order


@lru_cache(maxsize=1024)
def conv_crossover(
    shape: tuple[int, ...], weight: tuple[int, ...], size: tuple[int, ...], gradient: bool = True
) -> float:
    """Return the same of a convolution, whose output has ``size``, with the weight's gradient."""
    outputs, inputs, *extent = weight
    if inputs < _CONV_CHANNELS:
        return 0.0
    per_value = math.prod(size) / max(1, math.prod(shape[2:]))
    products = outputs * math.prod(extent) * per_value  # for each value of the input
    fixed = _CONV_SCANNED + _CONV_WRITTEN * outputs / inputs * per_value
    moved = _CONV_TABLE
    if gradient:
        moved += _CONV_TABLE + _CONV_SUMMED * min(CONV_TASKS, shape[0])
    fixed += (_CALLED + moved * math.prod(weight)) / max(1, math.prod(shape))
    gain = _CONV_DENSE * products - fixed
    return max(0.0, gain / (_CONV_ADDED * products + _CONV_LISTED))
