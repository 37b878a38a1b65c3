"""Detect memory outside neuron layers: compare what a model holds before and after a pass by layer.

By layer the model is called once for all steps. What it keeps from one step to the next outside the
states of its neurons (an attribute, a counter, a buffer, a list) would be wrong without a word. So
all that its modules hold is compared around the one call: objects by identity, tensors by version,
and by value what changes without either. A model that holds nothing but modules of PyTorch and of
this package pays for no values: only a user's own code writes past the versions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import hook_names, hooked_weights
from tracetorch.core.snapshot import ConsumptionWatch, Contents, identical, is_registry
from tracetorch.core.torch_private import (
    BatchNormBase,
    function_modes,
    functorch_active,
    global_hooks,
    lowest_wrapped,
    versions_of,
)
from tracetorch.core.values import Values, same_values, write_memory
from tracetorch.core.walk import LONG, Walk, is_opaque, join_path, slot_values
from tracetorch.events.passes import is_set_by_pass
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StateSnapshot
from tracetorch.unrolling.pass_facts import STATISTICS, PassFacts

_VALUES = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


class UnchangedContents(Contents):
    """Refuse a block, a pass by layer, that changes what the model holds: items, versions, values.

    The states of neuron layers are not among it: during a pass by layer they are set aside.

    Args:
        found: the walk over the model.
        facts: what a pass concludes from it.
        states: the states of its neuron layers.

    Raises:
        ValueError: something has changed; it is named, and what was held is given back.
    """

    def __init__(self, found: Walk, facts: PassFacts, states: StateSnapshot) -> None:
        super().__init__(found, layout=facts.layout)
        self.facts = facts
        modules, tensors = found.modules, found.held.tensors
        exact = facts.may_write or function_modes() > 0 or global_hooks()
        compared: list[Tensor | None] = []
        for number in facts.layout.modules:
            attributes = modules[number][1].__dict__
            compared += attributes["_parameters"].values()
            exact = exact or attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]
        for number in facts.with_buffers:
            compared += modules[number][1].__dict__["_buffers"].values()
        written: list[Tensor | None] = []
        for number in facts.cloned:
            written += modules[number][1].__dict__["_buffers"].values()
        if tensors:
            of_neurons = {id(state) for _, _, state in states.states}
            held = [tensor for _, tensor in tensors if id(tensor) not in of_neurons]
            compared += held
            written += held
        for tensor in written:
            if tensor is not None:
                self.written.append((tensor, tensor.detach().clone()))
        self._tensors = compared
        self._versions = versions_of(compared)
        self._exact = bool(exact)
        self._memory: dict[int, bytes] | None = None
        # code that names no way past the versions is watched for some passes all the same
        if (exact or facts.passes_to_read) and not functorch_active():
            facts.passes_to_read -= bool(facts.passes_to_read)
            self._memory = facts.memory.read(compared, exact=self._exact)
        self.consumption: ConsumptionWatch | None = None
        # of a long container the walk does not enter the items
        values: list[tuple[str, object]] = []
        for number in (*facts.layout.dicts, *facts.layout.sequences):
            owner: Any = found.owners[number][1]
            if len(owner) > LONG:
                values.append(found.owners[number])
        if found.held.values:
            self.consumption = ConsumptionWatch(self)
            values += found.held.values
        if values:
            self._values = Values(values, whole=False)

    def change(self) -> str | None:
        """Return the path of something that has changed since, or ``None``."""
        try:  # the very same objects in nearly every case
            unchanged = self._now == self._before
        except (RuntimeError, TypeError, ValueError):  # an array or tensor, compared by elements
            unchanged = False
        # two may be equal by an __eq__ that leaves something out, as that of tensors does a graph
        if self.facts.has_own_objects:
            unchanged = unchanged and all(map(identical, self._now, self._before))
        for path in () if unchanged else self.changed_items(_derived, _same):
            return path
        if self.consumption is not None:
            for path in self.consumption.consumed():
                return path
        if self._sequences or self._slots or self._values is not None:
            for path in self.changed_parts(_same):
                return path
        versions = versions_of(self._tensors)
        if versions != self._versions:
            pairs = zip(self._tensors, versions, self._versions, strict=True)
            written = self._path_of(tensor for tensor, now, before in pairs if now != before)
            if written is not None:
                return written
        return None if self._memory is None else self._changed_value(self._memory)

    def _changed_value(self, before: dict[int, bytes]) -> str | None:
        """Return the path of a tensor that holds other values, whatever its version says."""
        memory = self.facts.memory.read(self._tensors, exact=self._exact)
        if memory != before:
            numbers = [n for n in {**before, **memory} if before.get(n) != memory.get(n)]
            differ = [tensor for n in numbers if (tensor := self._tensors[n]) is not None]
            # other processes may write to what they share
            path = self._path_of(t for t in differ if not t.is_shared())  # type: ignore[no-untyped-call]
            if path is not None:
                return path
        elsewhere = [(t, value) for t, value in self.written if t.layout is not torch.strided]
        differ = [t for t, value in elsewhere if t.is_cpu and not same_values(t.detach(), value)]
        return self._path_of(differ) if differ else None

    def _path_of(self, tensors: Iterable[Tensor | None]) -> str | None:
        """Return the path of the first of some tensors, apart from statistics of batch norms.

        Of parameters and buffers those that are still in place: FSDP puts some together anew.
        """
        paths = {id(tensor): path for path, tensor in self.found.held.tensors}
        for path, owner, now, before in self.dicts():
            if is_registry(owner, now):
                for name, tensor in before.items():
                    is_own = now.get(name) is tensor
                    if is_own and not (name in STATISTICS and isinstance(owner, BatchNormBase)):
                        paths.setdefault(id(tensor), join_path(path, name))
        return next((paths[id(each)] for each in tensors if id(each) in paths), None)

    def __enter__(self) -> None:
        if self.consumption is not None:
            self.consumption.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.consumption is not None:
            self.consumption.__exit__()
        path = None if kind is not None else self.change()
        lost = self.restore() if kind is not None or path is not None else []
        if path is None:
            return
        if hooks := self._hooks_of(path):
            raise ValueError(
                f"{path} was changed by the forward pass, or by a hook on it ({', '.join(hooks)}). "
                "By layer each runs once for all steps, on [T * B, ...]: what it notes is not that "
                "of one step, and what it keeps for the next one is wrong. Use unroll(..., "
                'by="step"), where it runs at every step.'
            )
        left = f" {', '.join(lost)} cannot be restored and stays changed." if lost else ""
        raise ValueError(
            f"{path} was changed by the forward pass: the model keeps something from step to "
            "step outside the states of its neuron layers, and by layer it is called once for "
            'all steps. Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
            f"{left}"
        )

    def _hooks_of(self, path: str) -> list[str]:
        """Name the hooks of the module whose attribute, or a part of one, has a path."""
        holders = [each for each in self.found.modules if path.startswith(join_path(each[0], ""))]
        return hook_names(max(holders, key=lambda each: len(each[0]))[1]) if holders else []

    def restore(self) -> list[str]:
        """Give back what was held; return the paths of what cannot be given back."""
        lost = super().restore()
        if self.consumption is not None:
            lost += self.consumption.consumed()
        if self._memory is not None:
            for number, memory in self._memory.items():
                write_memory(self._tensors[number], memory)
            path = self._changed_value(self._memory)
            lost += [] if path is None else [path]
        return [*dict.fromkeys(lost)]


def _derived(module: nn.Module) -> set[str]:
    """Name the attributes that a call of a module computes anew."""
    own = hooked_weights(module)
    return own | module.transient_attributes if isinstance(module, SequenceLayer) else own


def _is_sharded(value: object) -> bool:
    """Whether a value is a tensor of an engine's own kind, which it exchanges as it likes."""
    return isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter)


def _same(before: object, now: object) -> bool:
    """Whether a value is the same: the same object, or a constant that was computed again."""
    if before is now or _is_sharded(before) or _is_sharded(now):
        return True
    if is_set_by_pass(before) or is_set_by_pass(now):
        return True  # of another thread, whose model shares the module
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
            and before.device == now.device
            # all samples of a vmap at once, of which torch.equal knows nothing
            and bool(torch.equal(lowest_wrapped(before), lowest_wrapped(now)))
        )
    if is_opaque(type(before)):  # type: ignore[arg-type]
        try:
            return bool(before == now)
        except (RuntimeError, TypeError, ValueError):  # compared by elements
            return False
    parts = [{**getattr(each, "__dict__", {}), **slot_values(each)} for each in (before, now)]
    try:
        return bool(parts[0]) and _same(*parts)
    except RecursionError:  # it holds itself
        return False
