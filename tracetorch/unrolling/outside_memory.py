"""Detect memory outside neuron layers: compare what a model holds before and after a pass by layer.

By layer the model is called once for all steps. What it keeps from one step to the next outside the
states of its neurons (an attribute, a counter, a buffer, a list) would be wrong without a word. So
all that its modules hold is compared around the one call: objects by identity, tensors by version,
and by value what changes without either. A model that holds nothing but modules of PyTorch and of
this package pays for no values: only a user's own code writes past the versions.
"""

from __future__ import annotations

import marshal
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import hook_names, hooked_weights
from tracetorch.core.snapshot import ConsumptionWatch
from tracetorch.core.torch_private import (
    BatchNormBase,
    function_modes,
    functorch_active,
    global_hooks,
    versions_of,
)
from tracetorch.core.values import (
    Memory,
    ValueSnapshot,
    same_values,
    set_values,
    write_memory,
)
from tracetorch.core.walk import LONG, Walk, is_opaque, join_path, slot_values
from tracetorch.events.passes import is_set_by_pass
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StateSnapshot
from tracetorch.unrolling.pass_facts import PassFacts

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
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
        hooked = function_modes() > 0 or global_hooks()
        for _, module in self._modules:
            attributes = module.__dict__
            parameters = attributes["_parameters"]
            self._now += (attributes, parameters, attributes["_buffers"])
            if parameters:
                self._registered.append(parameters)
            hooked = hooked or attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]
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
        self._has_objects = facts.has_own_objects
        self._owner_paths: list[str] = []
        for number in facts.dicts:
            self._owner_paths.append(owners[number][0])
            self._now.append(owners[number][1])
        for number in facts.objects:
            self._owner_paths.append(owners[number][0])
            self._now.append(owners[number][1].__dict__)
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        for number in facts.sequences:
            path, owner = owners[number]
            self._sequences.append((path, owner, tuple(owner)))
        self._long: list[tuple[str, Any, bytes]] = []
        for number in (*facts.dicts, *facts.sequences):
            path, owner = owners[number]
            if len(owner) > LONG:  # whose items the walk does not enter
                self._long.append((path, owner, _marshalled(owner)))
        self._slots: list[tuple[str, object, dict[str, object]]] = []
        for number in facts.slotted:
            path, owner = owners[number]
            self._slots.append((path, owner, slot_values(owner)))
        self._before = list(map(dict.copy, self._now))
        self._tensors: list[tuple[str, Tensor]] = []
        if found.held.tensors:
            of_neurons = {id(state) for _, _, state in states.states}
            self._tensors = [each for each in found.held.tensors if id(each[1]) not in of_neurons]
            self._values += [(tensor, tensor.detach().clone()) for _, tensor in self._tensors]
        self._held = self._tensors_now()
        self._versions = versions_of(self._held)
        self._reader = facts.memory
        self._exact = bool(hooked) or facts.may_write
        self._memory: Memory | None = None
        # code that names no way past the versions is watched for some passes all the same
        if (self._exact or facts.passes_to_read) and not functorch_active():
            facts.passes_to_read -= bool(facts.passes_to_read)
            self._memory = self._read()
        self._others: ValueSnapshot | None = None
        self.consumption: ConsumptionWatch | None = None
        if found.held.values:
            self._others = ValueSnapshot(found.held.values, whole=False)
            self.consumption = ConsumptionWatch(found)

    def _tensors_now(self) -> list[Tensor | None]:
        """Return the tensors whose versions are compared, as they are held now."""
        held: list[Tensor | None] = []
        for registry in self._registered:
            held += registry.values()
        for _, tensor in self._tensors:
            held.append(tensor)
        return held

    def change(self) -> str | None:
        """Return the path of something that has changed since, or ``None``."""
        unchanged = _equal(self._now, self._before)  # the very same objects in nearly every case
        if self._has_objects:  # two may be equal by an __eq__ that leaves something out
            unchanged = unchanged and _identical(self._now, self._before)
        if not unchanged:
            for number, now, before in self._compared():
                path, module = self._owner_of(number)
                for name in (
                    () if _identical([now], [before]) else _changed_keys(module, before, now)
                ):
                    return join_path(path, str(name))
        for path, owner, items in self._sequences:
            if len(items) != len(owner) or not (
                all(map(is_, items, owner)) or all(map(_same, items, owner))
            ):
                return path
        for path, owner, marshalled in self._long:
            if _marshalled(owner) != marshalled:
                return path
        for path, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                return f"{path}.{name}"
        if self._others is not None and self.consumption is not None:
            for path in (*self.consumption.consumed(), *self._others.changes()):
                return path
        if not unchanged or versions_of(self._held) != self._versions:
            written = self._changed_tensor(versions_of(self._tensors_now()), self._versions)
            if written is not None:
                return written
        return None if self._memory is None else self._changed_value(self._memory)

    def _read(self) -> Memory:
        """Read the memory of tensors, all of it where code may write past their versions."""
        return self._reader.read(self._held, exact=self._exact)

    def _changed_value(self, before: Memory) -> str | None:
        """Return the path of a tensor that holds other values, whatever its version says."""
        if (memory := self._read()) != before:
            old, new = before.by_number(), memory.by_number()
            differs = [
                tensor is not None
                and old.get(number) != new.get(number)
                # by other processes, which may write to it
                and not tensor.is_shared()  # type: ignore[no-untyped-call]
                for number, tensor in enumerate(self._held)
            ]
            path = self._changed_tensor(differs, [False] * len(differs))
            if path is not None:
                return path
        for tensor, value in self._values:
            elsewhere = tensor.is_cpu and tensor.layout is not torch.strided
            if elsewhere and not same_values(tensor.detach(), value):
                changed = [each is tensor for each in self._held]
                return self._changed_tensor(changed, [False] * len(changed))
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

    def _changed_tensor(self, found: list[Any], expected: list[Any]) -> str | None:
        """Return the path of the first tensor of which something else is found than expected."""
        contents = {
            id(now): (*self._owner_of(number), before) for number, now, before in self._compared()
        }
        names: list[str | None] = []
        for registry in self._registered:
            path, module, before = contents[id(registry)]
            statistics = _STATISTICS if isinstance(module, BatchNormBase) else ()
            for name, tensor in registry.items():
                # another object is not changed in place: FSDP has put a parameter together
                own = before.get(name) is tensor and name not in statistics
                names.append(join_path(path, name) if own else None)
        names += [path for path, _ in self._tensors]
        pairs = zip(names, found, expected, strict=True)
        return next((name for name, now, old in pairs if now != old and name is not None), None)

    def hooks_of(self, path: str) -> list[str]:
        """Name the hooks of the module whose attribute, or a part of one, has a path."""
        holders = [each for each in self._modules if not each[0] or path.startswith(f"{each[0]}.")]
        return hook_names(max(holders, key=lambda each: len(each[0]))[1]) if holders else []

    def restore(self) -> list[str]:
        """Give back what was held; return the paths of what cannot be given back."""
        for _, now, before in self._compared():
            if not _identical([now], [before]):
                now.clear()
                now.update(before)
        for _, owner, items in self._sequences:
            if len(items) == len(owner) and all(map(is_, items, owner)):
                continue
            owner.clear()
            owner.update(items) if isinstance(owner, set) else owner.extend(items)
        for _, owner, slots in self._slots:
            for name in _changed_keys(None, slots, slot_values(owner)):
                if name in slots:
                    object.__setattr__(owner, name, slots[name])
        for tensor, value in self._values:
            set_values(tensor, value)
        lost: list[str] = []
        if self._memory is not None:
            for number, start, stop in self._memory.places:
                held: Any = self._held[number]
                write_memory(held, self._memory.copied[start:stop])
            path = self._changed_value(self._memory)
            lost += [] if path is None else [path]
        if self._others is not None and self.consumption is not None:
            lost += [*self.consumption.consumed(), *self._others.restore()]
        lost += [path for path, owner, before in self._long if _marshalled(owner) != before]
        return [*dict.fromkeys(lost)]


def _marshalled(owner: Any) -> bytes:
    """Return all values in a container, however deep, where they are builtin ones."""
    try:
        return marshal.dumps(owner, 2)  # a later version depends on counts of references
    except ValueError:
        return b""


def _identical(now: list[dict[Any, Any]], before: list[dict[Any, Any]]) -> bool:
    """Whether dicts hold the same objects under the same keys."""
    for one, other in zip(now, before, strict=True):
        if one.keys() != other.keys() or not all(map(is_, map(one.get, other), other.values())):
            return False
    return True


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

    def __enter__(self) -> None:
        if self.before is not None and self.before.consumption is not None:
            self.before.consumption.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.before is None:
            return
        if self.before.consumption is not None:
            self.before.consumption.__exit__()
        path = None if kind is not None else self.before.change()
        lost = self.before.restore() if kind is not None or path is not None else []
        if path is not None and (hooks := self.before.hooks_of(path)):
            raise ValueError(
                f"{path} was changed by the forward pass, or by a hook on it ({', '.join(hooks)}). "
                "By layer each runs once for all steps, on [T * B, ...]: what it notes is not that "
                "of one step, and what it keeps for the next one is wrong. Use unroll(..., "
                'by="step"), where it runs at every step.'
            )
        if path is not None:
            left = f" {', '.join(lost)} cannot be restored and stays changed." if lost else ""
            raise ValueError(
                f"{path} was changed by the forward pass: the model keeps something from step to "
                "step outside the states of its neuron layers, and by layer it is called once for "
                'all steps. Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
                f"{left}"
            )


def _changed_keys(
    module: nn.Module | None, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    """Keys whose values differ, apart from what a hook of PyTorch computes anew in every call."""
    derived = set() if module is None else hooked_weights(module)
    if isinstance(module, SequenceLayer):
        derived |= module.transient_attributes
    for key in {**before, **now}:
        if key in derived or (key not in before and _is_looked_up(module, now, key)):
            continue
        if is_set_by_pass(before.get(key)) or is_set_by_pass(now.get(key)):
            continue  # of another thread, whose model shares the module
        if key not in before or key not in now or not _same(before[key], now[key]):
            yield key


def _is_looked_up(module: nn.Module | None, owner: dict[Any, Any], key: Any) -> bool:
    """Whether a key is there only because a ``defaultdict``, or a ``cached_property``, was read."""
    value = owner[key]
    empty = isinstance(value, (dict, list, set, tuple, deque)) and not value
    cached = isinstance(getattr(type(module), str(key), None), cached_property)
    return cached or (isinstance(owner, defaultdict) and empty)


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
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
        return len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(map(_same, before.values(), now.values()))
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        # only where nothing can tell them apart; a result of this call has a graph, or other values
        plain = not (before.requires_grad or now.requires_grad)
        return (
            plain
            and before.shape == now.shape
            and before.dtype == now.dtype
            and (before.device == now.device and bool(torch.equal(before, now)))
        )
    if is_opaque(type(before)):  # type: ignore[arg-type]
        return _equal(before, now)
    parts = [{**getattr(each, "__dict__", {}), **slot_values(each)} for each in (before, now)]
    try:
        return bool(parts[0]) and _same(*parts)
    except RecursionError:  # it holds itself
        return False
