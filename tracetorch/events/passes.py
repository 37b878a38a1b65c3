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
from tracetorch.events.conv import CONV, Window, window
from tracetorch.events.crossover import conv_crossover, crossover
from tracetorch.events.delayed import DELAYED
from tracetorch.events.linear import LINEAR
from tracetorch.events.lists import EventLists, list_events, sampled_density
from tracetorch.events.node import product
from tracetorch.events.observed import Product, observers, report
from tracetorch.events.request import mode
from tracetorch.fuse import backend
from tracetorch.fuse.runtime.machine_code import unavailable_reason
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.passes import Pass, ambient

# the method of each class that computes the product
_PRODUCTS: dict[type, tuple[str, Any]] = {
    nn.Linear: ("forward", nn.Linear.forward),
    nn.Conv2d: ("forward", nn.Conv2d.forward),
    DelayedLinear: ("convolve", DelayedLinear.convolve),
}
_requests = mode.requests
_OFF = ((_requests, "never", "tt.events.mode"), (backend.requests, "eager", "tt.fuse.backend"))
_DTYPES = (torch.float32, torch.float64)
_NAMES = ("forward", "convolve", "__getstate__")
_OWN = (*_NAMES, "_conv_forward")
# A sample of few rows errs: up to this multiple of the crossover the input is counted.
_DOUBT = 1.5


def event_modules(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the modules that may compute with events, each once: linear, convolved, with delays.

    Their type is exactly that: a subclass may do anything, and a parametrized module is one, but
    for those that ``tt.snn.connect`` has given a mask or signs. Where
    ``torch.compile`` has compiled a part of the model there are none: it would compile what is set
    here.
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

    Only ``forward`` is replaced, in the instance, or ``convolve`` of a layer with delays: hooks,
    ``functional_call`` and engines around the modules work as ever. A copy or a pickle that is made
    meanwhile does not have it. Passes of several threads share the replacements, the last of which
    takes them back; a call outside of a pass by layer is what it was. What an interrupt leaves
    behind, the next pass takes back: a pass that is gone counts no more. ``candidates`` are the
    modules that may, none of which is kept alive, each with its class.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.candidates = [
            (weakref.ref(module), plain_class(module)) for module in event_modules(modules)
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
                module, (name, method) = reference(), _PRODUCTS[kind]
                attributes = {} if module is None else module.__dict__
                # not where a user's own is set, in the instance or the class, or nobody's any more
                if (
                    module is not None
                    and attributes.keys().isdisjoint(_OWN)
                    and getattr(kind, name) is method
                    and (kind is not nn.Conv2d or kind._conv_forward is CONV_FORWARD)
                ):
                    self._changed.append(reference)  # first: it is taken back whatever happens
                    replacement = _convolve if name == "convolve" else _forward
                    attributes["__getstate__"] = partial(_state, module)
                    attributes[name] = MethodType(replacement, module)

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
    plain = partial(_PRODUCTS[kind][1], module, input)
    run = ambient.current
    if run is None or not run.folded or torch.compiler.is_compiling():
        return plain()  # type: ignore[no-any-return]
    weight, bias = module.weight, module.bias
    reason = _plain_reason(input, weight, bias)
    at: Window | str | None = None
    if reason is None and isinstance(module, nn.Conv2d):
        at = window(module, input)
        reason = at if isinstance(at, str) else None
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
    if isinstance(at, Window):
        y = _convolution(module, input, weight, bias, at)
    else:
        rows = input.numel() // weight.shape[1]
        limit = crossover(rows, *weight.shape[::-1])
        events = _events(module, input.detach().view(rows, -1), limit)
        y = None if events is None else product(LINEAR, input, weight, bias, events)
    return plain() if y is None else y


def _convolution(
    module: nn.Module, images: Tensor, weight: Tensor, bias: Tensor | None, at: Window
) -> Tensor | None:
    """Return a convolution by events; ``None`` where the dense one is faster."""
    has_gradient = weight.requires_grad and torch.is_grad_enabled()
    limit = conv_crossover(images.shape, weight.shape, at.size, has_gradient)
    events = _events(module, images.detach().view(len(images) * images.shape[1], -1), limit)
    return None if events is None else product(CONV, images, weight, bias, events, at)


def _convolve(module: DelayedLinear, past: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a layer with delays, in place of its own ``convolve``."""
    plain = partial(_PRODUCTS[type(module)][1], module, past, kernel, bias)
    run = ambient.current
    if run is None or not run.folded or torch.compiler.is_compiling():
        return plain()  # type: ignore[no-any-return]
    reason = _plain_reason(past, kernel, bias)
    if reason is None and (past.numel() == 0 or past.shape[-1] < kernel.shape[-1]):
        reason = "there is no step"
    if reason is None and past.numel() >= 2**31:
        reason = "the input has more values than an index can count"
    if reason is not None:
        report(module, Product(False, None, 0.0, reason))
        return plain()  # type: ignore[no-any-return]
    taps = kernel.shape[-1]
    steps = past.shape[-1] - taps + 1
    lead, (outputs, inputs) = past.shape[:-2], kernel.shape[:2]
    by_step = past.transpose(-1, -2).reshape(-1, steps + taps - 1, inputs)
    limit = crossover(len(by_step) * steps, inputs, outputs, taps)
    events = _events(module, by_step.detach().contiguous().view(-1, inputs), limit)
    if events is None:
        return plain()  # type: ignore[no-any-return]
    y = product(DELAYED, by_step, kernel.permute(2, 1, 0), bias, events)
    return y.view(steps, *lead, outputs).movedim(0, -1)


def _events(module: nn.Module, matrix: Tensor, limit: float) -> EventLists | None:
    """Return the events of the input; ``None`` where the dense product is faster. Report either."""
    names = _requests.in_thread.names  # as requested_mode, uncalled
    always = (names[-1] if names else _requests.default) == "always"
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
        if (
            dtype not in _DTYPES
            or tensor.dtype != dtype
            or not tensor.is_cpu
            or tensor.layout != torch.strided
        ):
            return "a tensor is not plain memory of one dtype, float32 or float64, on the CPU"
    return None
