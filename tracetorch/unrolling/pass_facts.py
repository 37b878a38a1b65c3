"""``PassFacts``: what a pass by layer concludes from a walk over a model, once for each walk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from tracetorch.core.snapshot import is_engine
from tracetorch.core.torch_private import BatchNormBase, is_compiled
from tracetorch.core.values import MemoryReader
from tracetorch.core.walk import METHODS, Walk, slots_of
from tracetorch.events.passes import event_modules
from tracetorch.snn.module import TTModule
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StatefulLayer
from tracetorch.unrolling.own_code import is_known, may_write
from tracetorch.unrolling.unsupported import (
    asks_module,
    computes_per_sample,
    per_sample_reason,
    unsupported_reason,
)

Methods: TypeAlias = Callable[[type], Any]

# of classes of modules, the methods that decide how a pass by layer runs them
_METHODS: tuple[tuple[type, Methods], ...] = (
    (nn.Module, attrgetter("forward")),
    (TTModule, attrgetter("zero_states")),
    (SequenceLayer, attrgetter("forward_step", "forward_sequence")),
)
_CLEARING = (TTModule.zero_states, StatefulLayer.zero_states)
_PASSES_TO_READ = 8  # of values of tensors, where no code seems to write past their versions


class PassFacts:
    """Conclusions from the types of a model's modules and the names of their attributes.

    Modules go by their number in the walk, so that none is kept alive.

    Args:
        found: the walk.
    """

    def __init__(self, found: Walk) -> None:
        modules = found.modules
        self.neurons = [
            n for n, (_, module) in enumerate(modules) if isinstance(module, SequenceLayer)
        ]
        self.has_recurrent = any(isinstance(module, Recurrent) for _, module in modules)
        self.has_compiled = any(is_compiled(module) for _, module in modules)
        may_use_events = set(map(id, event_modules(module for _, module in modules)))
        self.products = [n for n, (_, module) in enumerate(modules) if id(module) in may_use_events]
        # whether these can run by layer depends on the values of their attributes
        self.by_attributes = [n for n, (_, module) in enumerate(modules) if asks_module(module)]
        # a class may be patched: what is concluded from its methods holds as long as they are these
        self.methods: list[tuple[Methods, list[Any]]] = []
        self.clears_plainly = False
        self.passes_to_read = 0
        self.may_write = False
        if not torch.compiler.is_compiling():  # in which nothing is compared
            # only a user's own code writes to a tensor without a new version
            own = [module for _, module in modules if not is_known(module)]
            kinds = list({type(module): None for _, module in modules})
            self.methods = [
                (read, [kind for kind in kinds if issubclass(kind, base)])
                for base, read in _METHODS
            ]
            # without an override somewhere, states are cleared layer by layer
            self.clears_plainly = all(
                type(m).zero_states in _CLEARING and "zero_states" not in vars(m)
                for _, m in modules
                if isinstance(m, TTModule)
            )
            self.passes_to_read = _PASSES_TO_READ if own else 0
            self.may_write = may_write([*own, *(owner for _, owner in found.owners)])
            self.memory = MemoryReader()
        self.seen = self._methods_now()
        self.unsupported = unsupported_reason(modules)
        self.per_sample = [n for n, (_, m) in enumerate(modules) if computes_per_sample(type(m))]
        self.may_be_unsupported = bool(
            self.by_attributes or self.unsupported is not None or self.per_sample
        )
        # whose contents must not change in a pass, and which of their tensors are compared
        self.watched: list[int] = []
        self.with_buffers: list[int] = []
        self.cloned: list[int] = []
        # torch.compile compares nothing, and warns of a cache
        for number, (_, module) in enumerate(() if torch.compiler.is_compiling() else modules):
            if is_exempt(type(module)):  # type: ignore[arg-type]
                continue
            self.watched.append(number)
            if not (isinstance(module, BatchNormBase) and is_known(module)):
                self.with_buffers.append(number)
                if not isinstance(module, SequenceLayer):  # small, and restored on a refusal
                    self.cloned.append(number)
        self.dicts: list[int] = []
        self.sequences: list[int] = []
        self.objects: list[int] = []
        self.slotted: list[int] = []
        for number, (_, owner) in enumerate(found.owners):
            if isinstance(owner, dict):
                self.dicts.append(number)
            elif isinstance(owner, (list, deque, set)):
                self.sequences.append(number)
            elif not isinstance(owner, (tuple, frozenset, partial, *METHODS)):
                if isinstance(getattr(owner, "__dict__", None), dict):
                    self.objects.append(number)
                if slots_of(type(owner)):  # type: ignore[arg-type]
                    self.slotted.append(number)

        owners = [type(found.owners[number][1]) for number in (*self.objects, *self.slotted)]
        self.has_own_objects = not all(k.__module__.startswith("tracetorch.") for k in owners)

    def holds(self) -> bool:
        """Whether the methods that the neurons' classes have are still those that were seen."""
        return self._methods_now() == self.seen

    def _methods_now(self) -> list[Any]:
        """Return the methods that the classes have now."""
        found: list[Any] = []
        for read, kinds in self.methods:
            found += map(read, kinds)
        return found

    def unsupported_reason(
        self, modules: Sequence[tuple[str, nn.Module]], steps: int
    ) -> str | None:
        """Return the first reason why the model cannot run by layer, or ``None``."""
        if self.by_attributes or self.unsupported is not None:
            reason = unsupported_reason(modules)
            if reason is not None:
                return reason
        for number in self.per_sample if steps > 1 else ():
            reason = per_sample_reason(*modules[number])
            if reason is not None:
                return reason
        return None


@lru_cache(maxsize=1024)
def is_exempt(kind: Any) -> bool:
    """Whether modules of a class change themselves in a call for reasons of their own."""
    return is_engine(kind) or issubclass(kind, LazyModuleMixin)


def facts_of(found: Walk) -> PassFacts:
    """Return the facts of a walk: those that are remembered, where they still hold."""
    facts: PassFacts | None = found.facts.get("pass")
    if facts is None or not facts.holds():
        facts = PassFacts(found)
        if not torch.compiler.is_compiling():
            found.facts["pass"] = facts
    return facts
