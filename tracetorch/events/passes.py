"""Let layers of a model compute their products with events for the length of a pass by layer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    computes_as_conv2d,
    dispatch_modes,
    forward_ad_active,
    function_modes,
    functorch_active,
    has_values,
    is_compiled,
    is_tracing,
)
from tracetorch.events.conv import conv, window
from tracetorch.events.crossover import conv_crossover, crossover
from tracetorch.events.linear import linear
from tracetorch.events.lists import list_events, sampled_density
from tracetorch.events.observed import Product, report
from tracetorch.events.request import requested_mode
from tracetorch.fuse import requested_backend, unavailable_reason

_FORWARDS: dict[type, Any] = {nn.Linear: nn.Linear.forward, nn.Conv2d: nn.Conv2d.forward}
_PLAIN = (Tensor, nn.Parameter)
_DTYPES = (torch.float32, torch.float64)
_NAMES = ("forward", "__getstate__")
# A sample of few rows errs: up to this multiple of the crossover the input is counted.
_DOUBT = 1.5


def event_modules(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the modules that may compute with events: ``nn.Linear`` and ``nn.Conv2d``, each once.

    Their type is exactly that: a subclass may do anything, and a parametrized module is one. Where
    ``torch.compile`` has compiled a part of the model there are none: it would compile what is set
    here.
    """
    found: dict[int, nn.Module] = {}
    compiler_loaded = "torch._dynamo" in sys.modules
    for module in modules:
        if compiler_loaded and is_compiled(module):
            return ()
        if type(module) in _FORWARDS:
            found[id(module)] = module
    return tuple(found.values())


def unavailable() -> str | None:
    """Return why no product can be computed with events here and now, or ``None``."""
    if torch.compiler.is_compiling():
        return "torch.compile compiles the dense product"
    if requested_mode() == "never":
        return "tt.events.mode('never') is requested"
    if requested_backend() == "eager":
        return "tt.fuse.backend('eager') is requested"
    return unavailable_reason("numba")


@contextmanager
def event_passes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within a block, let each of ``modules`` decide at every call whether to use events.

    Only ``forward`` is replaced, in the instance: hooks, ``functional_call`` and engines around the
    modules work as ever. A copy or a pickle that is made within the block does not have it.

    Args:
        modules: what :func:`event_modules` returns.
    """
    if not modules or unavailable() is not None:
        yield
        return
    changed: list[dict[str, Any]] = []
    try:
        for module in modules:
            attributes = vars(module)
            # not where a user's own is set, or another thread's
            if attributes.keys().isdisjoint((*_NAMES, "_conv_forward")) and _is_plain(type(module)):
                changed.append(attributes)
                attributes["forward"] = MethodType(_forward, module)
                attributes["__getstate__"] = partial(_state, module)
        yield
    finally:
        for attributes in changed:
            for name in _NAMES:
                attributes.pop(name, None)


def is_set_by_pass(value: object) -> bool:
    """Whether an attribute of a module is there for the length of a pass alone."""
    function = value.__func__ if isinstance(value, MethodType) else getattr(value, "func", None)
    return function is _forward or function is _state


def _state(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module for its copy or pickle."""
    return {name: value for name, value in vars(module).items() if name not in _NAMES}


def _is_plain(kind: type) -> bool:
    """Whether nobody has replaced what a class computes."""
    own = kind is not nn.Conv2d or computes_as_conv2d(nn.Conv2d)
    return own and kind.forward is _FORWARDS[kind]  # type: ignore[attr-defined]


def _forward(module: nn.Linear | nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
    """Compute a layer, in place of its own ``forward``."""
    if torch.compiler.is_compiling():
        return _plain(module, input)
    reason = _dense_reason(module, input)
    if reason is not None:
        return _dense(module, input, Product(False, None, 0.0, reason))
    if isinstance(module, nn.Linear):
        rows = input.numel() // module.weight.shape[1]
        limit = crossover(rows, *module.weight.shape[::-1])
        at = None
    else:
        at = window(module, *input.shape[2:])
        rows = len(input) * module.weight.shape[1]
        limit = conv_crossover(input.shape, module.weight.shape, at.size)
    matrix = input.detach().view(rows, -1)
    if requested_mode() == "always":
        limit = 1.0
    elif limit <= 0:
        return _dense(module, input, Product(False, None, limit, "too small for events"))
    elif (density := sampled_density(matrix)) > _DOUBT * limit:
        return _dense(module, input, Product(False, density, limit, "too busy for events"))
    events, density = list_events(matrix, limit)
    if events is None:
        return _dense(module, input, Product(False, density, limit, "too busy for events"))
    report(module, Product(True, density, limit, None))
    if at is None:
        return linear(input, module.weight, module.bias, events)
    return conv(input, module.weight, module.bias, events, at)


def _plain(module: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    y: Tensor = _FORWARDS[type(module)](module, x)
    return y


def _dense(module: nn.Linear | nn.Conv2d, x: Tensor, product: Product) -> Tensor:
    report(module, product)
    return _plain(module, x)


def _dense_reason(module: nn.Linear | nn.Conv2d, x: Tensor) -> str | None:
    """Return why a call must be dense, whatever its input holds."""
    if dispatch_modes() or function_modes() or is_tracing():
        return "a mode must see every operation"
    if functorch_active() or forward_ad_active():
        return "a transform sees through plain operations alone"
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes in another dtype"
    weight, bias = module.weight, module.bias
    dtype = x.dtype if type(x) in _PLAIN else None
    if dtype not in _DTYPES:
        return "the input is not a plain tensor of float32 or float64"
    for tensor in (x, weight) if bias is None else (x, weight, bias):
        if (
            type(tensor) not in _PLAIN
            or tensor.dtype != dtype
            or tensor.device.type != "cpu"
            or tensor.layout != torch.strided
            or tensor.is_neg()
            or not has_values(tensor)
        ):
            return "a tensor is not plain memory of one dtype on the CPU"
    if isinstance(module, nn.Conv2d):
        reason = _dense_window(module, x)
        if reason is not None:
            return reason
    elif x.ndim < 2 or x.numel() == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return "the shapes are not those of rows and a weight"
    if bias is not None and bias.shape != weight.shape[:1]:
        return "the shapes are not those of a weight and its bias"
    return None if x.is_contiguous() else "the input is not contiguous"


def _dense_window(module: nn.Conv2d, x: Tensor) -> str | None:
    """Return why a convolution must be dense at these shapes."""
    weight = module.weight
    if module.groups != 1 or module.padding_mode != "zeros":
        return "the convolution has groups, or pads with other values than 0"
    if x.ndim != 4 or x.numel() == 0 or weight.ndim != 4 or x.shape[1] != weight.shape[1]:
        return "the shapes are not those of images and a weight"
    pairs = [module.stride, module.dilation]
    pairs += [] if isinstance(module.padding, str) else [module.padding]
    if any(type(pair) is not tuple or len(pair) != 2 or min(pair) < 0 for pair in pairs):
        return "stride, padding and dilation are not pairs"
    if min(*module.stride, *module.dilation) < 1 or min(window(module, *x.shape[2:]).size) < 1:
        return "the kernel does not fit into the images"
    reaches = (d * (k - 1) for d, k in zip(module.dilation, weight.shape[2:], strict=True))
    if module.padding == "same" and any(reach % 2 for reach in reaches):
        return "the padding is not the same on both sides"
    return None if weight.is_contiguous() else "the weight is not contiguous"
