"""``OrderedSums``: run PyTorch with the sums of the programs here, in ascending order of terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.torch_private import TorchDispatchMode


class OrderedSums(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of matrices, sums and means term by term in ascending order, in a block.

    PyTorch adds in an order that depends on the processor. With this one, what a block computes of
    operations that round alike everywhere is bit for bit what C computes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in ("mm", "bmm"):
            return _product(None, *args)
        if name == "addmm" and not kwargs:
            return _product(*args)
        if name in ("sum", "mean") and args[0].is_floating_point():
            dims, keeps = (*args[1:], False)[:2] if len(args) > 1 else (None, False)
            return _summed(args[0], dims, keeps, name == "mean")
        return func(*args, **kwargs)


def _product(start: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    terms = left.unsqueeze(-1) * right.unsqueeze(-3)  # [..., rows, terms, columns]
    begin = torch.zeros_like(terms[..., 0, :]) if start is None else start
    return _accumulated(begin.expand_as(terms[..., 0, :]), terms.movedim(-2, 0))


def _summed(x: Tensor, dims: Any, keeps: bool, is_mean: bool) -> Tensor:
    chosen = [d % x.ndim for d in dims] if dims else list(range(x.ndim))
    kept = [d for d in range(x.ndim) if d not in chosen]
    terms = x.permute(*sorted(chosen), *kept).reshape(-1, *(x.shape[d] for d in kept))
    total = _accumulated(torch.zeros_like(terms[0]), terms) if len(terms) else terms.sum(0)
    total = total / len(terms) if is_mean else total
    return (
        total.reshape([1 if d in chosen else n for d, n in enumerate(x.shape)]) if keeps else total
    )


def _accumulated(start: Tensor, terms: Tensor) -> Tensor:
    """Add terms one after the other, along the first dimension, each sum rounded."""
    rows = torch.cat([start[None], terms]).numpy()
    return torch.from_numpy(np.array(np.add.accumulate(rows, 0)[-1]))
