"""Tells a tensor that belongs to a ``torch.func`` transform, or to a trace, that is over."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import FuncTorchInterpreter, VmapInterpreter
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters as interpreters
from torch._subclasses.fake_tensor import FakeTensor

_functorch = torch._C._functorch


def is_left_behind(state: Tensor, x: Tensor | None = None) -> bool:
    """Whether ``state`` has no values here: its trace or transform is over.

    What a transform wraps carries the level at which it did. The transform that runs at that level
    now is another one where there is none, where it is of another kind, or maps over another size.

    Args:
        state: any tensor.
        x: an input of the same call.
    """
    if torch.compiler.is_compiling():
        return False
    if isinstance(state, FakeTensor):
        return x is not None and not isinstance(x, FakeTensor)
    if not _functorch.is_functorch_wrapped_tensor(state):
        return False
    running = {each.level(): each for each in interpreters()}
    while _functorch.is_functorch_wrapped_tensor(state):
        if not _is_of(state, running.get(_functorch.maybe_get_level(state))):
            return True
        state = _functorch.get_unwrapped(state)
    return False


def _is_of(state: Tensor, transform: FuncTorchInterpreter | None) -> bool:
    if transform is None:
        return False
    if not _functorch.is_batchedtensor(state):
        return not isinstance(transform, VmapInterpreter)
    size = _functorch.get_unwrapped(state).shape[_functorch.maybe_get_bdim(state)]
    return isinstance(transform, VmapInterpreter) and transform.batch_size() == size
