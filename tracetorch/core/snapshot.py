"""Snapshot and restore a model: attributes, tensor values, gradients, and the random state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.walk import named_modules, walk

_MISSING = object()
_REGISTRIES = ("_buffers", "_parameters", "_modules")


class ModelSnapshot:
    """The attributes of every module in a model at one time, and the items of their containers.

    Args:
        model: any module.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> before = ModelSnapshot(model)
        >>> model[0].bias, model.note = None, "changed"
        >>> before.changes()
        ['note', '0.bias']
        >>> before.restore()
        >>> before.changes()
        []
    """

    def __init__(self, model: nn.Module) -> None:
        self._entries = [
            (path, module, {name: (value, _items(value)) for name, value in vars(module).items()})
            for path, module in named_modules(model)
        ]

    def changes(
        self, ignored: Callable[[nn.Module], Collection[str]] = lambda module: ()
    ) -> list[str]:
        """List the paths of attributes and items that are not the same objects as before.

        Args:
            ignored: names of a module's attributes that may change.
        """
        found: list[str] = []
        for path, module, attributes in self._entries:
            names = ignored(module)
            now = vars(module)
            for name in {**attributes, **now}:
                value, items = attributes.get(name, (_MISSING, None))
                if name in names:
                    continue
                if now.get(name, _MISSING) is not value:
                    changed = [name]
                elif items is not None:
                    changed = _changed_items(name, items, _items(value) or {})
                else:
                    continue
                found += [f"{path}.{each}" if path else each for each in changed]
        return found

    def restore(self) -> None:
        """Give every module its attributes, and every container its items, back."""
        for _, module, attributes in self._entries:
            now = vars(module)
            now.clear()
            for name, (value, items) in attributes.items():
                now[name] = value
                if items is not None and _changed_items(name, items, _items(value) or {}):
                    _refill(value, items)


def _items(value: Any) -> dict[Any, Any] | None:
    """Return the items of a container by key or position; ``None`` for anything else."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, deque)):
        return dict(enumerate(value))
    if isinstance(value, set):
        return {each: each for each in value}
    return None


def _changed_items(name: str, before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """Names of the items that differ; those of ``_buffers`` and its kind go by their own names."""
    return [
        str(key) if name in _REGISTRIES else f"{name}[{key!r}]"
        for key in {**before, **after}
        if before.get(key, _MISSING) is not after.get(key, _MISSING)
    ]


def _refill(container: Any, items: dict[Any, Any]) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items.values())


@contextmanager
def restored(
    model: nn.Module, *, tensors: bool = True, training: bool | None = None
) -> Iterator[ModelSnapshot]:
    """Restore a model at the end of a block, whatever the block did to it.

    Attributes, and with them states and modes, are restored always. What user code keeps outside of
    the attributes of modules cannot be known.

    Args:
        model: any module.
        tensors: also restore the values and the gradients of parameters, buffers, and tensors in
            attributes and containers, and the state of the random number generators.
        training: the mode of every module within the block; ``None`` leaves it.
    """
    before = ModelSnapshot(model)
    with _tensors_restored(model) if tensors else nullcontext():
        try:
            if training is not None:
                for _, module in named_modules(model):
                    module.training = training
            yield before
        finally:
            before.restore()


@contextmanager
def _tensors_restored(model: nn.Module) -> Iterator[None]:
    found = walk(model)
    tensors = {
        id(t): t for _, m in found.modules for t in (*m.parameters(False), *m.buffers(False))
    }
    # those in plain attributes and containers too: a model may change them in place
    tensors |= {id(t): t for _, t in found.tensors if not t.is_inference() and not t.is_meta}
    saved = [
        (t, t.detach().clone(), t.grad if t.is_leaf else None, t.requires_grad)
        for t in tensors.values()
    ]
    cuda = {t.device for t in tensors.values() if t.is_cuda}
    with torch.random.fork_rng([device.index for device in cuda]):
        try:
            yield
        finally:
            for tensor, value, grad, requires_grad in saved:
                _restore_value(tensor, value)
                if tensor.is_leaf:
                    tensor.grad = grad
                    tensor.requires_grad_(requires_grad)


def _restore_value(tensor: Tensor, value: Tensor) -> None:
    """Write only where something has changed: a graph may be waiting for these very values."""
    may_hold_nan = tensor.is_floating_point() or tensor.is_complex()
    if not torch.allclose(tensor, value, rtol=0, atol=0, equal_nan=may_hold_nan):
        with torch.no_grad():
            tensor.copy_(value)
