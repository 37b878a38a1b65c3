"""Let layers of a model compute their products with events for the length of a pass by layer."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import CONV_FORWARD, is_compiled, observed_by
from tracetorch.events.choice import Product, conv_crossover, crossover, mode, observers, report
from tracetorch.events.conv import CONV, Window, window
from tracetorch.events.product import LINEAR, EventLists, list_events, product, sampled_density
from tracetorch.fuse import backend
from tracetorch.fuse.runtime.machine_code import unavailable_reason
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.passes import Pass, ambient

_PRODUCTS: dict[type, Any] = {nn.Linear: nn.Linear.forward, nn.Conv2d: nn.Conv2d.forward}
_requests = mode.requests
_OFF = ((_requests, "never", "tt.events.mode"), (backend.requests, "eager", "tt.fuse.backend"))
_DTYPES = (torch.float32, torch.float64)
_NAMES = ("forward", "__getstate__")
_OWN = (*_NAMES, "_conv_forward")
# A sample of few rows errs: up to this multiple of the crossover the input is counted.
_DOUBT = 1.5


def event_modules(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the modules that may compute with events, each once.

    A subclass may do anything. Where ``torch.compile`` has compiled a part of the model there are
    none: it would compile what is set here.
    """
    found: dict[int, nn.Module] = {}
    compiler_loaded = "torch._dynamo" in sys.modules
    for module in modules:
        if compiler_loaded and is_compiled(module):
            return ()
        if plain_class(module) in _PRODUCTS:
            found[id(module)] = module
    return tuple(found.values())


def unavailable() -> str | None:
    """Return why no product can be computed with events here and now, or ``None``."""
    if torch.compiler.is_compiling():
        return "torch.compile compiles the dense product"
    for requests, off, setting in _OFF:
        names = requests.in_thread.names
        if (names[-1] if names else requests.default) == off:
            return f"{setting}({off!r}) is requested"
    return unavailable_reason()


class EventProducts:
    """The products of a model that choose, during a pass by layer, whether to use events.

    A copy or a pickle that is made meanwhile does not have the ``forward`` of the instance. Passes
    of several threads share the replacements, the last of which takes them back. What an interrupt
    leaves behind, the next pass takes back: a pass that is gone counts no more.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # with their classes; none is kept alive
        self.candidates = [
            (weakref.ref(each), plain_class(each)) for each in event_modules(modules)
        ]
        self._lock = threading.Lock()
        self._passes: set[weakref.ref[Pass]] = set()
        self._changed: list[weakref.ref[nn.Module]] = []

    def enter(self, run: Pass) -> None:
        """Let the products choose, where there are any that may, until :meth:`leave`."""
        if unavailable() is not None:
            return
        with self._lock:
            others = bool(self._passes)
            self._passes.add(weakref.ref(run, self._passes.discard))
            if others:
                return
            for reference, kind in self.candidates:
                module = reference()
                attributes = {} if module is None else module.__dict__
                # not where a user's own is set, in the instance or the class, or nobody's any more
                if (
                    module is not None
                    and attributes.keys().isdisjoint(_OWN)
                    and kind.forward is _PRODUCTS[kind]
                    and (kind is not nn.Conv2d or kind._conv_forward is CONV_FORWARD)
                ):
                    self._changed.append(reference)  # first: it is taken back whatever happens
                    attributes["__getstate__"] = partial(_state, module)
                    attributes["forward"] = MethodType(_forward, module)

    def leave(self, run: Pass) -> None:
        """Take the replacements back, with the last pass."""
        with self._lock:
            self._passes.discard(weakref.ref(run))
            if self._passes:
                return
            while self._changed:
                module = self._changed[-1]()
                for name in () if module is None else _NAMES:
                    vars(module).pop(name, None)
                self._changed.pop()


def _state(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module for its copy or pickle."""
    attributes: dict[str, Any] = type(module).__getstate__(module)  # type: ignore[no-untyped-call]
    return {name: value for name, value in attributes.items() if name not in _NAMES}


def _forward(module: nn.Linear | nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
    """Compute a layer, in place of its own ``forward``."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    plain = partial(_PRODUCTS[kind], module, input)
    run = ambient.current
    if run is None or not run.folded or torch.compiler.is_compiling():
        return plain()  # type: ignore[no-any-return]
    weight, bias = module.weight, module.bias
    names = _requests.in_thread.names
    always = (names[-1] if names else _requests.default) == "always"
    # most products are too small: nothing else matters then
    rows = input.shape[:-1].numel()
    known = type(input) is Tensor and type(weight) is nn.Parameter and weight.ndim == 2
    if known and not (always or observers.active or crossover(rows, *weight.shape[::-1]) > 0):
        return plain()  # type: ignore[no-any-return]
    reason = _plain_reason(input, weight, bias)
    at: Window | None = None
    if reason is None and isinstance(module, nn.Conv2d):
        at = window(module, input)
        if at is None:
            reason = "groups, padding, strides or shapes are not those of a plain convolution"
    elif reason is None:
        is_rows = input.ndim >= 2 and weight.ndim == 2 and input.numel() > 0
        if not is_rows or input.shape[-1] != weight.shape[1]:
            reason = "the shapes are not those of rows and a weight"
    if reason is None and bias is not None and bias.shape != weight.shape[:1]:
        reason = "the shapes are not those of a weight and its bias"
    if reason is None and not input.is_contiguous():
        reason = "the input is not contiguous"
    if reason is not None:
        report(module, Product(False, None, 0.0, reason))
        return plain()  # type: ignore[no-any-return]
    if at is not None:
        rows, has_gradient = input.shape[:2].numel(), weight.requires_grad
        has_gradient = has_gradient and torch.is_grad_enabled()
        limit = conv_crossover(input.shape, weight.shape, at.size, has_gradient)
    else:
        limit = crossover(rows, *weight.shape[::-1])
    events = _events(module, input.detach().view(rows, -1), limit, always)
    if events is None:
        return plain()  # type: ignore[no-any-return]
    return product(CONV if kind is nn.Conv2d else LINEAR, input, weight, bias, events, at)


def _events(module: nn.Module, matrix: Tensor, limit: float, always: bool) -> EventLists | None:
    """Return the events of the input; ``None`` where the dense product is faster. Report either."""
    limit = 1.0 if always else limit
    events: EventLists | None = None
    density: float | None = None
    reason: str | None = None
    if limit <= 0:
        reason = "too small for events"
    elif not always and (density := sampled_density(matrix)) > _DOUBT * limit:
        reason = "too busy for events"
    else:
        events, density = list_events(matrix, limit)
        reason = "too busy for events" if events is None else None
    if observers.active:
        report(module, Product(events is not None, density, limit, reason))
    return events


def _plain_reason(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Return why a call must be dense, whatever its shapes are and its input holds."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if (reason := observed_by(tensors)) is not None:
        return reason
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes in another dtype"
    dtype = x.dtype
    for tensor in tensors:
        dense = tensor.is_cpu and tensor.layout == torch.strided
        if dtype not in _DTYPES or tensor.dtype != dtype or not dense:
            return "a tensor is not plain memory of one dtype, float32 or float64, on the CPU"
    return None
