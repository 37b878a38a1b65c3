"""Snapshot and restore a model: attributes, containers, tensors, gradients, modes, random state."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.walk import METHODS, Walk, slot_values, walk


class Values:
    """The values of some tensors and the gradients of leaves among them, to write them back."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        writable = torch.is_inference_mode_enabled()  # tensors of inference, else they are not
        kept = {id(t): t for t in tensors if not t.is_meta and (writable or not t.is_inference())}
        self.values = [(t, t.detach().clone()) for t in kept.values()]
        leaves = [t for t in kept.values() if t.is_leaf and not t.is_inference()]
        self._leaves = [(t, t.grad, t.requires_grad) for t in leaves]

    def restore(self) -> None:
        """Write values and gradients."""
        for tensor, value in self.values:
            set_values(tensor, value)
        for tensor, grad, requires_grad in self._leaves:
            tensor.grad = grad
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)


def set_values(tensor: Tensor, values: Tensor) -> None:
    """Write the values of a tensor, uncounted and only where they differ: a graph may wait."""
    strided = tensor.layout is torch.strided and not tensor.is_nested
    now = tensor.detach()
    if not (strided and now.shape == values.shape) or not (
        torch.equal(now, values)
        or (now.is_floating_point() and torch.allclose(now, values, 0, 0, equal_nan=True))
    ):
        tensor.data.copy_(values)


def _setters_of(found: Walk) -> Iterator[Callable[[], object]]:
    """Yield what gives modules, containers and plain objects the objects that they hold now."""
    for _, module in found.modules:
        # engines keep books of their own in every call; torch.jit shows a view of attributes
        if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(
            ("torch.nn.parallel", "torch.distributed")
        ):
            if hasattr(module, "training"):  # torch.jit.freeze leaves none
                yield partial(setattr, module, "training", module.training)
            continue
        attributes = vars(module)
        yield partial(_set_items, attributes, dict(attributes))
        for name in ("_parameters", "_buffers", "_modules"):
            yield partial(_set_items, attributes[name], dict(attributes[name]), is_registry=True)
    for _, owner in found.owners:
        if isinstance(owner, dict):
            yield partial(_set_items, owner, dict(owner))
        elif isinstance(owner, (list, deque, set)):
            yield partial(_set_elements, owner, tuple(owner))
        elif not isinstance(owner, (tuple, frozenset, partial, *METHODS)):
            if isinstance(own := getattr(owner, "__dict__", None), dict):
                yield partial(_set_items, own, dict(own))
            yield partial(_set_slots, owner, slot_values(owner))


def _set_items(now: dict[Any, Any], before: dict[Any, Any], is_registry: bool = False) -> None:
    if now.keys() == before.keys() and all(map(is_, map(now.get, before), before.values())):
        return
    if is_registry:
        # what was sharded then is left alone: FSDP puts its parameters together by itself
        before = {k: v if _is_plain(v) else now.get(k, v) for k, v in before.items()}
    now.clear()
    now.update(before)


def _set_elements(owner: Any, items: tuple[Any, ...]) -> None:
    if len(items) != len(owner) or not all(map(is_, items, owner)):
        owner.clear()
        owner.update(items) if isinstance(owner, set) else owner.extend(items)


def _set_slots(owner: object, slots: dict[str, Any]) -> None:
    for key in slot_values(owner).keys() - slots.keys():
        object.__delattr__(owner, key)
    for key, value in slots.items():
        object.__setattr__(owner, key, value)


def _is_plain(value: object) -> bool:
    return type(value) in (Tensor, nn.Parameter, type(None)) or isinstance(value, nn.Module)


@contextmanager
def restored(
    model: nn.Module, *, tensors: bool = True, training: bool | None = None
) -> Iterator[None]:
    """Restore a model after a block: its attributes; with ``tensors`` values and gradients too."""
    found = walk(model)
    setters, modules = [*_setters_of(found)], [module for _, module in found.modules]
    registered = [t for m in modules for t in (*m.parameters(False), *m.buffers(False))]
    values = Values((*registered, *(t for _, t in found.tensors)) if tensors else ())
    cuda = {t.device.index for t, _ in values.values if t.is_cuda}
    with random_restored(cuda) if tensors else nullcontext():
        try:
            for module in modules if training is not None else ():
                module.training = bool(training)
            yield
        finally:
            for give_back in setters:
                give_back()
            values.restore()


@contextmanager
def random_restored(devices: Collection[int | None]) -> Iterator[None]:
    """Restore random states behind a block: PyTorch's, with CUDA devices, Python's and NumPy's."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors the values that they had before a block, where the block fails."""
    before = Values(tensors)
    try:
        yield
    except BaseException:
        before.restore()
        raise
