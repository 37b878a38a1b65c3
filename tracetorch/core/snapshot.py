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

from tracetorch.core.walk import METHODS, join_path, slot_values, slots_of, walk

_MISSING = object()
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_PLAIN = (Tensor, nn.Parameter, type(None))


class Snapshot:
    """Snapshot of the objects that a model's modules, containers and plain objects hold."""

    def __init__(self, model: nn.Module) -> None:
        self.found = walk(model)
        # what is held by name: path, whose it is, the dict, its items then
        self._dicts: list[tuple[str, Any, dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        self._slots: list[tuple[str, Any, dict[str, Any]]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        for path, module in self.found.modules:
            # engines keep books of their own in every call; torch.jit shows a view of attributes
            if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(
                ("torch.nn.parallel", "torch.distributed")
            ):
                if hasattr(module, "training"):  # torch.jit.freeze leaves none
                    self._modes.append((module, module.training))
                continue
            attributes = vars(module)
            for each in (attributes, *(attributes[name] for name in _REGISTRIES)):
                self._dicts.append((path, module, each, dict(each)))
        for path, owner in self.found.owners:
            if isinstance(owner, dict):
                self._dicts.append((path, owner, owner, dict(owner)))
            elif isinstance(owner, (list, deque, set)):
                self._sequences.append((path, owner, tuple(owner)))
            elif not isinstance(owner, (tuple, frozenset, partial, *METHODS)):
                own = getattr(owner, "__dict__", None)
                if isinstance(own, dict):
                    self._dicts.append((path, owner, own, dict(own)))
                if slots_of(type(owner)):  # type: ignore[arg-type]
                    self._slots.append((path, owner, slot_values(owner)))

    def changes(
        self, ignored: Callable[[nn.Module], Collection[str]] = lambda module: ()
    ) -> Iterator[str]:
        """Yield the paths of attributes and items that are others now, but for ``ignored``."""
        for path, owner, now, before in self._dicts:
            names = ignored(owner) if isinstance(owner, nn.Module) else ()
            for key in _changed_keys(before, now):
                if key not in names:
                    yield f"{path}[{key!r}]" if now is owner else join_path(path, str(key))
        for path, owner, items in self._sequences:
            for key in _changed_keys(dict(enumerate(items)), dict(enumerate(owner))):
                yield f"{path}[{key}]"
        for path, owner, slots in self._slots:
            for key in _changed_keys(slots, slot_values(owner)):
                yield f"{path}.{key}"

    def restore(self) -> None:
        """Give every module its attributes, and every container and object what it held."""
        for _, owner, now, before in self._dicts:
            if not any(True for _ in _changed_keys(before, now)):
                continue
            if isinstance(owner, nn.Module) and now is not vars(owner):
                # what was sharded then is left alone: FSDP puts its parameters together by itself
                before = {k: v if _is_plain(v) else now.get(k, v) for k, v in before.items()}
            now.clear()
            now.update(before)
        for _, owner, items in self._sequences:
            if len(items) != len(owner) or not all(map(is_, items, owner)):
                owner.clear()
                owner.update(items) if isinstance(owner, set) else owner.extend(items)
        for _, owner, slots in self._slots:
            for key in list(_changed_keys(slots, slot_values(owner))):
                if key in slots:
                    object.__setattr__(owner, key, slots[key])
                else:
                    object.__delattr__(owner, key)
        for module, training in self._modes:
            module.training = training


class Values:
    """The values of some tensors, to write them back."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        writable = torch.is_inference_mode_enabled()  # tensors of inference, else they are not
        kept = {id(t): t for t in tensors if not t.is_meta and (writable or not t.is_inference())}
        self.values = [(t, t.detach().clone()) for t in kept.values()]

    def restore(self) -> None:
        """Write the values of the tensors."""
        for tensor, value in self.values:
            set_values(tensor, value)


class _ModelValues(Values):
    """The values and gradients of a model's tensors, those in attributes and containers too."""

    def __init__(self, before: Snapshot) -> None:
        registered = [
            t for _, m in before.found.modules for t in (*m.parameters(False), *m.buffers(False))
        ]
        super().__init__((*registered, *(t for _, t in before.found.tensors)))
        leaves = [t for t, _ in self.values if t.is_leaf and not t.is_inference()]
        self.leaves = [(t, t.grad, t.requires_grad) for t in leaves]

    def restore(self) -> None:
        """Write values and gradients."""
        super().restore()
        for tensor, grad, requires_grad in self.leaves:
            tensor.grad = grad
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)


def set_values(tensor: Tensor, values: Tensor) -> None:
    """Write the values of a tensor, only where they differ: a graph may be waiting for them.

    It is the graph of when they were these values, so that the write is not counted.
    """
    strided = tensor.layout is torch.strided and not tensor.is_nested
    same = strided and tensor.shape == values.shape and _same_bytes(tensor.detach(), values)
    if not same:
        tensor.data.copy_(values)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN among them."""
    if torch.equal(one, other):
        return True
    pairs = (torch.isnan, torch.nan_to_num)
    return one.is_floating_point() and all(torch.equal(f(one), f(other)) for f in pairs)


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or isinstance(value, nn.Module)


def _changed_keys(before: dict[Any, Any], now: dict[Any, Any]) -> Iterator[Any]:
    """Iterate over the keys under which another object is held than before."""
    for key in {**before, **now}:
        if before.get(key, _MISSING) is not now.get(key, _MISSING):
            yield key


@contextmanager
def restored(
    model: nn.Module, *, tensors: bool = True, training: bool | None = None
) -> Iterator[None]:
    """Restore a model at the end of a block, whatever the block did to it.

    Attributes, and with them states and modes, always; with ``tensors`` values, gradients and
    random states too. ``training`` is the mode within the block, unless it is ``None``. What user
    code keeps outside of the attributes of modules cannot be known.
    """
    before = Snapshot(model)
    values = _ModelValues(before) if tensors else None
    cuda = {t.device.index for t, _ in values.values if t.is_cuda} if values is not None else set()
    with random_restored(cuda) if tensors else nullcontext():
        try:
            if training is not None:
                for _, module in before.found.modules:
                    module.training = training
            yield
        finally:
            before.restore()
            if values is not None:
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
