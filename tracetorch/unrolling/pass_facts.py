"""``PassFacts``: what a pass by layer concludes from a walk over a model, once for each walk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from tracetorch.core.snapshot import Layout, is_engine
from tracetorch.core.torch_private import BatchNormBase, is_compiled
from tracetorch.core.values import MemoryReader
from tracetorch.core.walk import Walk
from tracetorch.events.passes import event_modules
from tracetorch.snn.module import TTModule
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StatefulLayer
from tracetorch.unrolling.own_code import is_known, may_write
from tracetorch.unrolling.unsupported import (
    asks_module,
    computes_per_sample,
    has_memory,
    per_sample_reason,
    refusal,
    unsupported_reason,
)

_CLEARING = (TTModule.zero_states, StatefulLayer.zero_states)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm: no memory
_PASSES_TO_READ = 8  # of values of tensors, where no code seems to write past their versions


class PassFacts:
    """Conclusions from the types of a model's modules and the names of their attributes.

    Modules go by their number in the walk, so that none is kept alive.

    Args:
        found: the walk.
    """

    def __init__(self, found: Walk) -> None:
        numbered = [(number, module) for number, (_, module) in enumerate(found.modules)]
        modules = [module for _, module in numbered]
        self.neurons = [n for n, module in numbered if isinstance(module, SequenceLayer)]
        self.memories = [n for n, module in numbered if has_memory(module)]
        self.has_recurrent = any(isinstance(module, Recurrent) for module in modules)
        self.has_compiled = any(map(is_compiled, modules))
        may_use_events = set(map(id, event_modules(modules)))
        self.products = [n for n, module in numbered if id(module) in may_use_events]
        # whether these can run by layer depends on the values of their attributes
        self.by_attributes = any(map(asks_module, modules))
        self.unsupported = unsupported_reason(found.modules)
        self.whole_sequence = [n for n, module in numbered if isinstance(module, nn.RNNBase)]
        self.per_sample = [n for n, module in numbered if computes_per_sample(type(module))]
        self.may_be_unsupported = bool(
            self.by_attributes or self.unsupported is not None or self.per_sample
        )
        self.clears_plainly = False
        self.compares_contents = False
        if torch.compiler.is_compiling():  # nothing is compared, and it warns of a cache
            return
        # without an override somewhere, states are cleared layer by layer
        self.clears_plainly = all(
            type(m).zero_states in _CLEARING and "zero_states" not in vars(m)
            for m in modules
            if isinstance(m, TTModule)
        )
        self.compares_contents = True
        # only a user's own code writes to a tensor without a new version
        own = [module for module in modules if not is_known(module)]
        self.passes_to_read = _PASSES_TO_READ if own else 0
        self.may_write = may_write([*own, *(owner for _, owner in found.owners)])
        self.memory = MemoryReader()
        # what must not change in a pass, in which a module may make its parameters
        self.layout = Layout(found, is_exempt, ("_parameters", "_buffers"), empty=False)
        # whose buffers are compared, and copied; those of neurons are small, and restored anyway
        watched = [modules[number] for number in self.layout.modules]
        pairs = zip(self.layout.modules, watched, strict=True)
        self.with_buffers = [
            n for n, m in pairs if not (isinstance(m, BatchNormBase) and is_known(m))
        ]
        self.cloned = [n for n in self.with_buffers if n not in self.neurons]
        owners: list[tuple[str, Any]] = found.owners
        owning = [type(owners[n][1]) for n in (*self.layout.objects, *self.layout.slotted)]
        self.has_own_objects = bool(own) or not all(
            k.__module__.startswith("tracetorch.") for k in owning
        )

    def check_supported(self, modules: Sequence[tuple[str, nn.Module]], steps: int) -> None:
        """Raise where the model cannot run by layer.

        Raises:
            ValueError: it cannot; the first module that is in the way is named.
        """
        reason = None
        if self.by_attributes or self.unsupported is not None:
            reason = unsupported_reason(modules)
        for number in self.per_sample if steps > 1 else ():
            if reason is None and (found := per_sample_reason(*modules[number])) is not None:
                reason = refusal(found)
        if reason is not None:
            raise ValueError(reason)


@lru_cache(maxsize=1024)
def is_exempt(kind: Any) -> bool:
    """Whether modules of a class change themselves in a call for reasons of their own."""
    return is_engine(kind) or issubclass(kind, LazyModuleMixin)


def facts_of(found: Walk) -> PassFacts:
    """Return the facts of a walk, which hold as long as it is remembered."""
    facts: PassFacts | None = found.facts.get("pass")
    if facts is None:
        facts = PassFacts(found)
        if not torch.compiler.is_compiling():
            found.facts["pass"] = facts
    return facts
