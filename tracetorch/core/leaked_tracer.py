"""Detect leaked tracers: tensors of a ``torch.func`` transform, or of a trace, that is over.

A state whose level is not running, or is run by a transform of another kind, has no values here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.torch_private import (
    FakeTensor,
    FuncTorchInterpreter,
    VmapInterpreter,
    functorch,
    retrieve_all_functorch_interpreters,
)


def is_leaked_tracer(state: Tensor, x: Tensor | None = None) -> bool:
    """Whether ``state`` has no values beside ``x``, because its trace or transform is over."""
    if torch.compiler.is_compiling():
        return False
    if isinstance(state, FakeTensor):
        return x is not None and not isinstance(x, FakeTensor)
    if not functorch.is_functorch_wrapped_tensor(state):
        return False
    running = {each.level(): each for each in retrieve_all_functorch_interpreters()}
    # transforms nest: each wrapper around the values must belong to a running one
    while functorch.is_functorch_wrapped_tensor(state):
        if not _belongs_to(state, running.get(functorch.maybe_get_level(state))):
            return True
        state = functorch.get_unwrapped(state)
    return False


def _belongs_to(state: Tensor, transform: FuncTorchInterpreter | None) -> bool:
    if transform is None:
        return False
    if not functorch.is_batchedtensor(state):
        return not isinstance(transform, VmapInterpreter)
    size = functorch.get_unwrapped(state).shape[functorch.maybe_get_bdim(state)]
    return isinstance(transform, VmapInterpreter) and transform.batch_size() == size
