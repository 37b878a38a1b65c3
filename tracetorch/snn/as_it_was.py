"""A model is run to be looked at, and is afterwards what it was before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.snn.neuron import Neuron
from tracetorch.snn.walk import named_modules

# What a neuron layer notes for itself in a call; its states are explicit in the program.
_NOTES = frozenset(
    {"_steppers", "_zeroed_in_backward", "_zeroed_in_trace", "arguments", "layer_pass", "training"}
)
_MISSING = object()


class AsItWas:
    """The attributes of every module in a model at one time, and what is in those that hold some.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            (path, module, {name: (value, _inside(value)) for name, value in vars(module).items()})
            for path, module in named_modules(model)
        ]

    def changes(self) -> list[str]:
        """Paths of what has changed since, the states of neuron layers apart."""
        found: list[str] = []
        for path, module, held in self._held:
            states = module.kept_states if isinstance(module, Neuron) else ()
            now = vars(module)
            for name in {**held, **now}:
                value, inside = held.get(name, (_MISSING, None))
                if name in states or name in _NOTES:
                    continue
                if now.get(name, _MISSING) is not value:
                    names = [name]
                elif inside is not None:
                    names = _differ(inside, _inside(value) or {}, name)
                else:
                    continue
                found += [f"{path}.{each}" if path else each for each in names]
        return found

    def restore(self) -> None:
        """Put everything back."""
        for _, module, held in self._held:
            now = vars(module)
            now.clear()
            for name, (value, inside) in held.items():
                now[name] = value
                if inside is not None and _differ(inside, _inside(value) or {}, name):
                    _refill(value, inside)


def _inside(value: Any) -> dict[Any, Any] | None:
    """What a container holds, by key or place."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, deque)):
        return dict(enumerate(value))
    if isinstance(value, set):
        return {each: each for each in value}
    return None


def _differ(one: dict[Any, Any], other: dict[Any, Any], name: str) -> list[str]:
    """Names of what is not the very same in both; ``_buffers`` and kin are not named."""
    own = name in ("_buffers", "_parameters", "_modules")
    return [
        str(key) if own else f"{name}[{key!r}]"
        for key in {**one, **other}
        if one.get(key, _MISSING) is not other.get(key, _MISSING)
    ]


def _refill(container: Any, inside: dict[Any, Any]) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(inside)
    else:
        container.extend(inside.values())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back all that a run changes: attributes, and with them states and modes; values; chance.

    Gradients are not touched by ``torch.autograd.grad``, and are put back if something else is
    used. What user code keeps outside of attributes of modules cannot be known.
    """
    before = AsItWas(model)
    tensors = {
        id(t): t for _, m in named_modules(model) for t in (*m.parameters(False), *m.buffers(False))
    }
    values = [
        (t, t.detach().clone(), t.grad if t.is_leaf else None, t.requires_grad)
        for t in tensors.values()
    ]
    cuda = {t.device for t in tensors.values() if t.is_cuda}
    with torch.random.fork_rng([device.index for device in cuda]):
        try:
            yield
        finally:
            before.restore()
            for tensor, value, grad, asked in values:
                _put_back(tensor, value)
                if tensor.is_leaf:
                    tensor.grad = grad
                    tensor.requires_grad_(asked)


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Write only where something has changed: a graph may be waiting for these very values."""
    nan = tensor.is_floating_point() or tensor.is_complex()
    if not torch.allclose(tensor, value, rtol=0, atol=0, equal_nan=nan):
        with torch.no_grad():
            tensor.copy_(value)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[AsItWas]:
    """While it lasts the model is in eval mode and may be changed; then it is as before."""
    before = AsItWas(model)
    try:
        for _, module in named_modules(model):
            module.training = False
        yield before
    finally:
        before.restore()
