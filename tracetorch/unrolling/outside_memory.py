"""Detect memory outside neuron layers: compare what a model holds before and after a pass by layer.

By layer the model is called once for all steps. What it keeps from one step to the next outside the
states of its neurons (an attribute, a counter, a buffer, a list) would be wrong without a word. So
all that its modules hold is compared around the one call, by identity and by version.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import hook_names, hooked_weights
from tracetorch.core.torch_private import versions_of
from tracetorch.core.walk import Walk, join_path, slot_values
from tracetorch.events.passes import is_set_by_pass
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.stateful_layer import StateSnapshot
from tracetorch.unrolling.pass_facts import PassFacts

# A longer container is data, a replay buffer say: only its length and its ends are compared.
_LONG = 1000
_VALUES = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


class MemorySnapshot:
    """Attributes of the modules of a model, of their containers and plain objects, at one time.

    The states of neuron layers are not among it: during a pass by layer they are set aside.

    Args:
        found: the walk over the model.
        facts: what a pass concludes from it.
        states: the states of its neuron layers.
    """

    def __init__(self, found: Walk, facts: PassFacts, states: StateSnapshot) -> None:
        # written for speed: it runs at every call of unroll
        modules = found.modules
        self._modules = [modules[number] for number in facts.watched]
        # of each module three: its attributes, parameters and buffers
        self._now: list[dict[Any, Any]] = []
        self._registered: list[dict[str, Tensor | None]] = []
        for _, module in self._modules:
            attributes = module.__dict__
            parameters = attributes["_parameters"]
            self._now += (attributes, parameters, attributes["_buffers"])
            if parameters:
                self._registered.append(parameters)
        for number in facts.with_buffers:
            buffers = modules[number][1].__dict__["_buffers"]
            if buffers:
                self._registered.append(buffers)
        self._values: list[tuple[Tensor, Tensor]] = []
        for number in facts.cloned:
            for buffer in modules[number][1].__dict__["_buffers"].values():
                if buffer is not None:
                    self._values.append((buffer, buffer.detach().clone()))
        owners: list[tuple[str, Any]] = found.owners
        self._owner_paths = [owners[number][0] for number in (*facts.dicts, *facts.objects)]
        self._now += [owners[number][1] for number in facts.dicts]
        self._now += [owners[number][1].__dict__ for number in facts.objects]
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        for number in facts.sequences:
            path, owner = owners[number]
            self._sequences.append((path, owner, _contents(owner)))
        self._slots: list[tuple[str, object, dict[str, object]]] = []
        for number in facts.slotted:
            path, owner = owners[number]
            self._slots.append((path, owner, slot_values(owner)))
        self._before = list(map(dict.copy, self._now))
        self._tensors: list[tuple[str, Tensor]] = []
        if found.tensors:
            of_neurons = {id(state) for _, _, state in states.states}
            self._tensors = [each for each in found.tensors if id(each[1]) not in of_neurons]
            self._values += [(tensor, tensor.detach().clone()) for _, tensor in self._tensors]
        self._held = self._tensors_now()
        self._versions = versions_of(self._held)

    def _tensors_now(self) -> list[Tensor | None]:
        """Return the tensors whose versions are compared, as they are held now."""
        held = [tensor for registry in self._registered for tensor in registry.values()]
        return held + [tensor for _, tensor in self._tensors]

    def change(self) -> str | None:
        """Return the path of something that has changed since, or ``None``."""
        unchanged = _equal(self._now, self._before)  # the very same objects in nearly every case
        if not unchanged:
            for number, now, before in self._compared():
                path, module = self._owner_of(number)
                for name in () if _equal(now, before) else _changed_keys(module, before, now):
                    return join_path(path, str(name))
        for path, owner, before_items in self._sequences:
            items = _contents(owner)
            if len(items) != len(before_items) or not all(map(_same, items, before_items)):
                return path
        for path, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                return f"{path}.{name}"
        if versions_of(self._held) == self._versions and unchanged:
            return None
        if (versions := versions_of(self._tensors_now())) != self._versions:
            return self._changed_tensor(versions)
        return None

    def _compared(self) -> Iterator[tuple[int, dict[Any, Any], dict[Any, Any]]]:
        """Iterate over the dicts with their number and what they held before.

        Without registries that were empty: a module may make its parameters in the first call.
        """
        for number, (now, before) in enumerate(zip(self._now, self._before, strict=True)):
            if before or number >= 3 * len(self._modules):
                yield number, now, before

    def _owner_of(self, number: int) -> tuple[str, nn.Module | None]:
        """Return path and module of a dict; ``None`` for one of another owner."""
        of_modules = 3 * len(self._modules)
        if number < of_modules:
            return self._modules[number // 3]
        return self._owner_paths[number - of_modules], None

    def _changed_tensor(self, versions: list[int | None]) -> str | None:
        """Return the path of the first tensor that has been changed in place."""
        contents = {
            id(now): (self._owner_of(number)[0], before) for number, now, before in self._compared()
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

    def hooks_of(self, path: str) -> list[str]:
        """Name the hooks of the module whose attribute, or a part of one, has a path."""
        holders = [each for each in self._modules if not each[0] or path.startswith(f"{each[0]}.")]
        return hook_names(max(holders, key=lambda each: len(each[0]))[1]) if holders else []

    def restore(self) -> None:
        """Give back what was held, values of buffers and of tensors in attributes included."""
        for _, now, before in self._compared():
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


def _equal(now: object, before: object) -> bool:
    """Whether dicts, or lists of them, hold the same."""
    try:
        return bool(now == before)
    except (RuntimeError, TypeError, ValueError):  # another tensor or array, compared by elements
        return False


class memory_unchanged:  # noqa: N801 (used as a function)
    """Refuse a block, a pass by layer, that changes what the model holds.

    Under ``torch.compile`` nothing is compared: it cannot follow the comparison.

    Args:
        found: the walk over the model.
        facts: what a pass concludes from it.
        states: the states of its neuron layers, which may change.
        steps: time steps; with a single one nothing is kept from step to step.

    Raises:
        ValueError: something has changed; it is named, and what was held is given back.
    """

    def __init__(self, found: Walk, facts: PassFacts, states: StateSnapshot, steps: int) -> None:
        self.before: MemorySnapshot | None = None
        if steps > 1 and not torch.compiler.is_compiling():
            self.before = MemorySnapshot(found, facts, states)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.before is None:
            return
        path = None if kind is not None else self.before.change()
        if kind is not None or path is not None:
            self.before.restore()
        if path is not None and (hooks := self.before.hooks_of(path)):
            raise ValueError(
                f"{path} was changed by the forward pass, or by a hook on it ({', '.join(hooks)}). "
                "By layer each runs once for all steps, on [T * B, ...]: what it notes is not that "
                "of one step, and what it keeps for the next one is wrong. Use unroll(..., "
                'by="step"), where it runs at every step.'
            )
        if path is not None:
            raise ValueError(
                f"{path} was changed by the forward pass: the model keeps something from step to "
                "step outside the states of its neuron layers, and by layer it is called once for "
                'all steps. Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
            )


def _changed_keys(
    module: nn.Module | None, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    """Keys whose values differ, apart from what a hook of PyTorch computes anew in every call."""
    derived = set() if module is None else hooked_weights(module)
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
