"""Keep tensors alive until a process that is being spawned has opened their shared memory."""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

_kept: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()


def kept_for_child(tensor: Tensor) -> Tensor:
    """Return a tensor that a ``__getstate__`` has made, kept alive as long as a pickle needs it.

    PyTorch pickles a tensor for a process that is being started as the number of an open file,
    which is closed when the tensor is freed; the child inherits it only after all is pickled. So
    such tensors live as long as the parent's record of the process. Elsewhere nothing is kept.
    """
    process = get_spawning_popen()
    if process is not None:
        _kept.setdefault(process, []).append(tensor)
    return tensor
