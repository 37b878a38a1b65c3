"""Look at a model and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tracetorch.snn.walk import named_modules

# Dicts that a module fills on the way: their contents are put back, the dicts stay the same ones.
_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back all that a run changes: attributes, and with them states and modes; values; chance.

    Gradients are not touched by ``torch.autograd.grad``, and are put back if something else is
    used. What user code keeps outside of attributes of modules cannot be known.
    """
    modules = [module for _, module in named_modules(model)]
    attributes = [(module, dict(vars(module))) for module in modules]
    tables = [(vars(m)[name], dict(vars(m)[name])) for m in modules for name in _TABLES]
    tensors = {id(t): t for m in modules for t in (*m.parameters(False), *m.buffers(False))}
    values = [
        (t, t.detach().clone(), t.grad if t.is_leaf else None, t.requires_grad)
        for t in tensors.values()
    ]
    cuda = {t.device for t in tensors.values() if t.is_cuda}
    with torch.random.fork_rng([device.index for device in cuda]):
        try:
            yield
        finally:
            for module, held in attributes:
                vars(module).clear()
                vars(module).update(held)
            for table, content in tables:
                table.clear()
                table.update(content)
            for tensor, value, grad, asked in values:
                _put_back(tensor, value)
                if tensor.is_leaf:
                    tensor.grad = grad
                    tensor.requires_grad_(asked)


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Write only where something has changed: a graph may be waiting for these very values."""
    nan = tensor.is_floating_point() or tensor.is_complex()
    if not torch.allclose(tensor, value, rtol=0, atol=0, equal_nan=nan):
        with torch.no_grad():
            tensor.copy_(value)
