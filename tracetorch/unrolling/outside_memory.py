"""Detect memory outside neuron layers: compare what a model holds before and after a pass by layer.

By layer the model is called once for all steps. What it keeps from one step to the next outside the
states of its neurons (an attribute, a counter, a buffer, a list) would be wrong without a word. So
all that its modules hold is compared around the one call, by identity and by version.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from tracetorch.core.snapshot import is_engine
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import Walk, join_path, slot_values, slots_of
from tracetorch.events.passes import is_set_by_pass
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import StateSnapshot

# A longer container is data, a replay buffer say: only its length and its ends are compared.
_LONG = 1000
_VALUES = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


class MemorySnapshot:
    """Attributes of the modules of a model, of their containers and plain objects, at one time.

    The states of neuron layers are not among it: during a pass by layer they are set aside.

    Args:
        found: the walk over the model.
        states: the states of its neuron layers.
    """

    def __init__(self, found: Walk, states: StateSnapshot) -> None:
        # written for speed: it runs at every call of unroll
        self._modules: list[tuple[str, nn.Module, list[tuple[dict[str, Any], dict[str, Any]]]]] = []
        self._registered: list[dict[str, Tensor | None]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        for path, module in found.modules:
            kind = type(module)
            if _is_exempt(kind):  # type: ignore[arg-type]
                continue
            attributes = module.__dict__
            parameters, buffers = attributes["_parameters"], attributes["_buffers"]
            held = [(attributes, attributes.copy())]
            if parameters:
                held.append((parameters, parameters.copy()))
                self._registered.append(parameters)
            if buffers:
                held.append((buffers, buffers.copy()))
                if not issubclass(kind, BatchNormBase):
                    self._registered.append(buffers)
                    if not issubclass(kind, Neuron):  # small, and restored on a refusal
                        present = (b for b in buffers.values() if b is not None)
                        self._values += [(b, b.detach().clone()) for b in present]
            self._modules.append((path, module, held))
        self._dicts: list[tuple[str, dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        self._slots: list[tuple[str, object, dict[str, object]]] = []
        for path, owner in found.owners:
            self._add_owner(path, owner)
        self._tensors: list[tuple[str, Tensor]] = []
        if found.tensors:
            of_neurons = {id(state) for _, _, state in states.states}
            self._tensors = [each for each in found.tensors if id(each[1]) not in of_neurons]
            self._values += [(tensor, tensor.detach().clone()) for _, tensor in self._tensors]
        self._versions = self._current_versions()

    def _add_owner(self, path: str, owner: Any) -> None:
        if isinstance(owner, dict):
            self._dicts.append((path, owner, dict(owner)))
        elif isinstance(owner, (list, deque, set)):
            self._sequences.append((path, owner, _contents(owner)))
        elif not isinstance(owner, (tuple, frozenset)):
            attributes = getattr(owner, "__dict__", None)
            if isinstance(attributes, dict):
                self._dicts.append((path, attributes, attributes.copy()))
            if slots_of(type(owner)):  # type: ignore[arg-type]
                self._slots.append((path, owner, slot_values(owner)))

    def _current_versions(self) -> list[int]:
        versions: list[int] = []
        try:
            for registry in self._registered:
                for tensor in registry.values():
                    versions.append(-1 if tensor is None else tensor._version)
            versions += [tensor._version for _, tensor in self._tensors]
        except RuntimeError:  # tensors of inference_mode count no versions
            return []
        return versions

    def change(self) -> str | None:
        """Return the path of something that has changed since, or ``None``."""
        for path, module, held in self._modules:
            for now, before in held:
                if not _equal(now, before):
                    for name in _changed_keys(module, before, now):
                        return f"{path}.{name}" if path else str(name)
        for path, now, before in self._dicts:
            if not _equal(now, before):
                for name in _changed_keys(None, before, now):
                    return f"{path}.{name}"
        for path, owner, before_items in self._sequences:
            items = _contents(owner)
            if len(items) != len(before_items) or not all(map(_same, items, before_items)):
                return path
        for path, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                return f"{path}.{name}"
        if (versions := self._current_versions()) != self._versions:
            return self._changed_tensor(versions)
        return None

    def _changed_tensor(self, versions: list[int]) -> str | None:
        """Return the path of the first tensor that has been changed in place."""
        contents = {
            id(now): (path, before) for path, _, held in self._modules for now, before in held
        }
        names: list[str | None] = []
        for registry in self._registered:
            path, before = contents[id(registry)]
            for name, tensor in registry.items():
                # another object is not changed in place: FSDP has put a parameter together
                own = before.get(name) is tensor
                names.append(join_path(path, name) if own else None)
        names += [path for path, _ in self._tensors]
        pairs = zip(names, versions, self._versions, strict=True)
        return next((name for name, now, old in pairs if now != old and name is not None), None)

    def restore(self) -> None:
        """Give back what was held, values of buffers and of tensors in attributes included."""
        dicts = [pair for _, _, held in self._modules for pair in held]
        dicts += [(now, before) for _, now, before in self._dicts]
        for now, before in dicts:
            if not _equal(now, before):
                now.clear()
                now.update(before)
        for _, owner, items in self._sequences:
            if len(items) == len(owner) and all(map(is_, items, owner)):
                continue
            if len(owner) <= _LONG:
                owner.clear()
                owner.update(items) if isinstance(owner, set) else owner.extend(items)
        for _, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                if name in slots:
                    object.__setattr__(owner, name, slots[name])
        with torch.no_grad():
            for tensor, value in self._values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _contents(owner: Any) -> tuple[Any, ...]:
    """Return the items of a sequence or set, of a long one its length alone."""
    return (len(owner),) if len(owner) > _LONG else tuple(owner)


def _equal(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a dict holds the same; the very same objects in nearly every case."""
    try:
        return now == before
    except (RuntimeError, TypeError, ValueError):  # another tensor or array, compared by elements
        return False


@contextmanager
def memory_unchanged(found: Walk, states: StateSnapshot, steps: int) -> Iterator[None]:
    """Refuse a block, a pass by layer, that changes what the model holds.

    Under ``torch.compile`` nothing is compared: it cannot follow the comparison.

    Args:
        found: the walk over the model.
        states: the states of its neuron layers, which may change.
        steps: time steps; with a single one nothing is kept from step to step.

    Raises:
        ValueError: something has changed; it is named, and what was held is given back.
    """
    if steps == 1 or torch.compiler.is_compiling():
        yield
        return
    before = MemorySnapshot(found, states)
    try:
        yield
    except BaseException:
        before.restore()
        raise
    path = before.change()
    if path is not None:
        before.restore()
        raise ValueError(
            f"{path} was changed by the forward pass: the model keeps something from step to step "
            "outside the states of its neuron layers, and by layer it is called once for all "
            'steps. Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
        )


@lru_cache(maxsize=1024)
def _is_exempt(kind: Any) -> bool:
    """Whether modules of a class change themselves in a call for reasons of their own."""
    return is_engine(kind) or issubclass(kind, LazyModuleMixin)


def _changed_keys(
    module: nn.Module | None, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    """Keys whose values differ, apart from what a hook of PyTorch computes anew in every call."""
    derived = {
        getattr(hook, "name", None)
        for hook in (() if module is None else module._forward_pre_hooks.values())
        if type(hook).__module__.startswith("torch.nn.utils")
    }
    if isinstance(module, Neuron):
        derived |= module.transient_attributes
    for key in {**before, **now}:
        if key in derived or (key not in before and _is_looked_up(now, key)):
            continue
        if is_set_by_pass(before.get(key)) or is_set_by_pass(now.get(key)):
            continue  # of another thread, whose model shares the module
        if key not in before or key not in now or not _same(before[key], now[key]):
            yield key


def _is_looked_up(owner: dict[Any, Any], key: Any) -> bool:
    """Whether a key is there only because a ``defaultdict`` looked it up."""
    value = owner[key]
    empty = isinstance(value, (dict, list, set, tuple, deque)) and not value
    return isinstance(owner, defaultdict) and empty


def _is_sharded(value: object) -> bool:
    """Whether a value is a tensor of an engine's own kind, which it exchanges as it likes."""
    return isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter)


def _same(before: object, now: object) -> bool:
    """Whether a value is the same: the same object, or a constant that was computed again."""
    if before is now or _is_sharded(before) or _is_sharded(now):
        return True
    if type(before) is not type(now):
        return False
    if isinstance(before, _VALUES):
        return before == now
    if isinstance(before, tuple) and isinstance(now, tuple):
        return len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        # only where nothing can tell them apart; a result of this call has a graph, or other values
        plain = not (before.requires_grad or now.requires_grad)
        return (
            plain
            and before.shape == now.shape
            and before.dtype == now.dtype
            and (before.device == now.device and bool(torch.equal(before, now)))
        )
    return False
