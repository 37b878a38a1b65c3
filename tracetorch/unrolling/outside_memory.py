"""Detect memory outside neuron layers: compare what a model holds before and after a pass by layer.

By layer the model is called once for all steps. What it keeps from one step to the next outside the
states of its neurons (an attribute, a counter, a buffer, a list) would be wrong without a word. So
all that its modules hold is compared around the one call, by identity and by version.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import Walk, slot_values
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import StateSnapshot

# Wrappers that keep books of their own in every call, and put modules' parameters together anew.
_ENGINES = ("torch.nn.parallel", "torch.distributed")
_REGISTRIES = ("_parameters", "_buffers")
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
        self._dicts: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = []
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        self._slots: list[tuple[str, object, dict[str, object]]] = []
        of_neurons = {id(state) for _, _, state in states.states}
        self._tensors = [each for each in found.tensors if id(each[1]) not in of_neurons]
        self._values: list[tuple[Tensor, Tensor]] = [
            (tensor, tensor.detach().clone()) for _, tensor in self._tensors
        ]
        self._versions: list[int] = []
        for path, module in found.modules:
            if is_engine(module) or isinstance(module, LazyModuleMixin):
                continue
            attributes = module.__dict__
            self._dicts.append((path, module, attributes, attributes.copy()))
            for registry in _REGISTRIES:
                held = attributes[registry]
                if held:
                    self._dicts.append((path, module, held, held.copy()))
                    if registry == "_parameters" or not isinstance(module, BatchNormBase):
                        self._tensors += [
                            (f"{path}.{n}" if path else n, t) for n, t in held.items()
                        ]
                    if registry == "_buffers" and not isinstance(module, (Neuron, BatchNormBase)):
                        # small, and restored where the call is refused
                        self._values += [
                            (b, b.detach().clone()) for b in held.values() if b is not None
                        ]
        for path, owner in found.owners:
            self._add_owner(path, owner)
        self._versions = [_version(tensor) for _, tensor in self._tensors]

    def _add_owner(self, path: str, owner: Any) -> None:
        if isinstance(owner, dict):
            self._dicts.append((path, None, owner, dict(owner)))
        elif isinstance(owner, (list, deque, set)):
            items = (len(owner),) if len(owner) > _LONG else tuple(owner)
            self._sequences.append((path, owner, items))
        elif not isinstance(owner, (tuple, frozenset)):
            attributes = getattr(owner, "__dict__", None)
            if isinstance(attributes, dict):
                self._dicts.append((path, None, attributes, attributes.copy()))
            self._slots += [(path, owner, slot_values(owner))]

    def change(self) -> str | None:
        """Return the path of something that has changed since, or ``None``."""
        for path, module, now, before in self._dicts:
            if len(now) != len(before) or not all(map(is_, now.values(), before.values())):
                for name in _changed_keys(module, before, now):
                    return f"{path}.{name}" if path else str(name)
        for path, owner, before_items in self._sequences:
            items = (len(owner),) if len(owner) > _LONG else tuple(owner)
            if len(items) != len(before_items) or not all(map(_same, items, before_items)):
                return path
        for path, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                return f"{path}.{name}"
        for (path, tensor), version in zip(self._tensors, self._versions, strict=True):
            if _version(tensor) != version:
                return path
        return None

    def restore(self) -> None:
        """Give back what was held, values of buffers and of tensors in attributes included."""
        for _, _, now, before in self._dicts:
            if len(now) != len(before) or not all(map(is_, now.values(), before.values())):
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


def is_engine(module: nn.Module) -> bool:
    """Whether a module belongs to an engine that keeps books of its own in every call."""
    return type(module).__module__.startswith(_ENGINES)


def _version(tensor: Tensor | None) -> int:
    # a tensor of inference_mode counts no versions
    return -1 if tensor is None or tensor.is_inference() else tensor._version


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
        if key in derived:
            continue
        if key not in before or key not in now or not _same(before[key], now[key]):
            yield key


def _same(before: object, now: object) -> bool:
    """Whether a value is the same: the same object, or a constant that was computed again."""
    if before is now:
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
