"""Count the multiply-accumulates and accumulates of a linear or convolutional layer.

Counting zeros and ones counts products. A product is linear: the count over a batch is that of the
inputs' sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.integers.layers import Product as IntegerProduct
from tracetorch.metrics.operations import SynapticOperations
from tracetorch.metrics.size import WEIGHTED
from tracetorch.snn.delay import SynapticDelays
from tracetorch.snn.sparse_linear import SparseLinear

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the dimensions of the weight


def call_operations(layer: Any, x: Tensor, share: float) -> SynapticOperations:
    """Count operations of a call on ``x`` ``[S, B, ...]``, of which ``share`` is no padding."""
    taps = 1
    if isinstance(layer, SparseLinear):
        # each nonzero input is multiplied by every nonzero weight of its edges
        present = (layer.edge_weight() != 0).to(torch.float64)
        edges = present.new_zeros(layer.in_features).index_add(0, layer.edges[0], present)
        nonzero = (x != 0).reshape(len(x), -1, x.shape[-1]).sum(1, dtype=torch.float64)
        effective, dense = nonzero @ edges, x.numel() / layer.in_features * len(present)
        return _by_kind(x, effective, share * dense)
    if isinstance(layer, SynapticDelays):
        # An input is multiplied now and at the steps to come, where the interpolation is not zero.
        kernel = layer.kernel(layer.delay)
        taps = kernel.shape[-1]
        weight = (kernel != 0).sum(-1, dtype=torch.float64)
        layer = layer.product
    else:
        weight = (layer.weight != 0).to(torch.float64)
    if weight.ndim == 2:
        # Each nonzero input is multiplied by every nonzero weight of its column.
        nonzero = (x != 0).reshape(len(x), -1, x.shape[-1]).sum(1, dtype=torch.float64)
        effective, dense = nonzero @ weight.sum(0), float(x.numel()) * len(weight)
    else:

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            if isinstance(layer, IntegerProduct):
                return layer.product(x, weight)
            convolution: Any = _CONVOLUTIONS[weight.ndim]
            return cast("Tensor", convolution._conv_forward(layer, x, weight, None))

        x = x if x.ndim > weight.ndim else x.unsqueeze(1)  # with a batch
        effective, dense = convolution_products(x, weight, convolve)
    return _by_kind(x, effective, share * dense * taps)


def _by_kind(x: Tensor, effective: Tensor, dense: float) -> SynapticOperations:
    """Return operations of each step as MACs or ACs."""
    # NeuroBench decides by step: one real value makes every operation of the step a MAC.
    dims = tuple(range(1, x.ndim))
    spiking = ((x == 0) | (x.abs() == 1)).all(dims) if dims else x == 0
    macs, acs = float(effective[~spiking].sum()), float(effective[spiking].sum())
    return SynapticOperations(macs, acs, dense)


def convolution_products(
    x: Tensor, weight: Tensor, convolve: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, float]:
    """Count by step the products of ``[S, B, ...]`` without a zero factor, and all together."""
    nonzero = (x != 0).sum(1, dtype=torch.float64)
    dense = convolve(torch.ones_like(nonzero[:1]), torch.ones_like(weight, dtype=torch.float64))
    return convolve(nonzero, weight).flatten(1).sum(1), float(dense.sum()) * len(x) * x.shape[1]


def matrix_products(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Count the products of ``first @ second`` without a zero factor, and all of them."""
    # summed over the dimension that is not contracted, where there is one
    sides = [(t != 0, [dim] if t.ndim > 1 else []) for t, dim in ((first, -2), (second, -1))]
    rows, columns = (t.sum(dim, dtype=torch.float64) if dim else t.double() for t, dim in sides)
    effective = rows * columns
    sizes = [t.shape[dim[0]] for t, dim in sides if dim]
    return float(effective.sum()), float(effective.numel()) * math.prod(sizes)


def counted_by_call(module: nn.Module, *, masked: bool) -> bool:
    """Whether the products of a module are those of its input with its weight, at each call.

    Those of a ``forward`` of another class than PyTorch's are counted as they run, except where a
    mask must be followed.
    """
    if isinstance(module, SynapticDelays | SparseLinear) or (
        masked and isinstance(module, WEIGHTED)
    ):
        return True
    base: Any = next((base for base in WEIGHTED if isinstance(module, base)), None)
    if base is None or "forward" in vars(module):
        return False
    names = "forward", "_conv_forward"
    return all(getattr(type(module), n, None) is getattr(base, n, None) for n in names)
