"""Count the multiply-accumulates and accumulates of a linear or convolutional layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from tracetorch.integers.layers import Product as IntegerProduct
from tracetorch.metrics.size import WEIGHTED
from tracetorch.snn.delay import SynapticDelays

# Layers whose products are counted, where they are called; those of delays call no other layer.
COUNTED = (*WEIGHTED, SynapticDelays)

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the dimensions of the weight


@dataclass
class OperationCounts:
    """Sums of operations: MACs of real inputs, ACs of spikes, and all products, zeros too."""

    macs: float = 0.0
    acs: float = 0.0
    dense: float = 0.0

    def add(self, layer: nn.Module, x: Tensor, share: float = 1.0) -> None:
        """Add the operations of one call on ``x`` ``[S, B, ...]``, judging each of the ``S`` steps.

        Args:
            layer: one of ``COUNTED``.
            x: its input, zero where it is padding.
            share: share of ``x`` that is no padding.
        """
        effective, dense = _products(layer, x)
        # NeuroBench decides by step: one real value makes every operation of the step a MAC.
        dims = tuple(range(1, x.ndim))
        spiking = ((x == 0) | (x == 1) | (x == -1)).all(dims) if dims else x == 0
        self.acs += float(effective[spiking].sum())
        self.macs += float(effective[~spiking].sum())
        self.dense += share * dense


def _products(layer: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Count products without a zero factor, by step, and all products together."""
    taps = 1
    if isinstance(layer, SynapticDelays):
        # An input is multiplied now and at the steps to come, where the interpolation is not zero.
        kernel = layer.kernel(layer.delay)
        taps = kernel.shape[-1]
        weight = (kernel != 0).sum(-1, dtype=torch.float64)
        layer = layer.product
    else:
        weight = (cast("Convolution", layer).weight != 0).to(torch.float64)
    if weight.ndim == 2:
        # Each nonzero input is multiplied by every nonzero weight of its column.
        nonzero = (x != 0).reshape(len(x), -1, x.shape[-1]).sum(1, dtype=torch.float64)
        return nonzero @ weight.sum(0), float(x.numel()) * len(weight) * taps
    conv = cast("Convolution", layer)
    if x.ndim == weight.ndim:  # without a batch
        x = x.unsqueeze(1)
    # Convolving zeros and ones counts the products. A convolution is linear: the count over the
    # batch is the convolution of the inputs' sum.
    nonzero = (x != 0).sum(1, dtype=torch.float64)
    effective = _convolve(conv, nonzero, weight).flatten(1).sum(1)
    dense = _convolve(conv, torch.ones_like(nonzero[:1]), torch.ones_like(weight)).sum()
    return effective, float(dense) * x.shape[0] * x.shape[1] * taps


def _convolve(layer: Convolution | IntegerProduct, x: Tensor, weight: Tensor) -> Tensor:
    """Convolve as ``layer`` does, with another weight and without a bias."""
    if isinstance(layer, IntegerProduct):
        return layer.product(x, weight)
    convolve: Any = _CONVOLUTIONS[weight.ndim]._conv_forward
    convolved: Tensor = convolve(layer, x, weight, None)
    return convolved


def matrix_products(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Count the products of ``first @ second`` without a zero factor, and all of them."""
    # summed over the dimension that is not contracted, where there is one
    sides = [(t != 0, [dim] if t.ndim > 1 else []) for t, dim in ((first, -2), (second, -1))]
    rows, columns = (t.sum(dim, dtype=torch.float64) if dim else t.double() for t, dim in sides)
    effective = rows * columns
    sizes = [t.shape[dim[0]] for t, dim in sides if dim]
    return float(effective.sum()), float(effective.numel()) * math.prod(sizes)


def convolution_products(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[float, float]:
    """Count the products of a convolution without a zero factor, and all of them."""

    def products(x: Tensor, weight: Tensor) -> float:
        none = [0] * len(stride)
        return float(
            torch.convolution(x, weight, None, stride, padding, dilation, False, none, groups).sum()
        )

    nonzero = (x != 0).sum(0, keepdim=True, dtype=torch.float64)
    effective = products(nonzero, (weight != 0).to(torch.float64))
    ones = torch.ones_like(weight, dtype=torch.float64)
    return effective, products(torch.ones_like(nonzero), ones) * len(x)


def counted_by_call(module: nn.Module, *, masked: bool) -> bool:
    """Whether the products of a module are those of its input with its weight, at each call.

    Those of a ``forward`` of another class than PyTorch's are counted as they run, except where a
    mask must be followed.
    """
    if isinstance(module, SynapticDelays) or (masked and isinstance(module, WEIGHTED)):
        return True
    for base in WEIGHTED:
        if isinstance(module, base):
            own = "forward" in vars(module) or type(module).forward is not base.forward
            computes = getattr(type(module), "_conv_forward", None)
            return not own and computes is getattr(base, "_conv_forward", None)
    return False
