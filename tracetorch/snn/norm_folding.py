"""Fold a batch norm, as it is in evaluation, into the product before it."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import BatchNorm
from tracetorch.snn.connectivity import connectivity, write_weight

# nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d: a weight with the outputs first, and a bias or none
WeightedLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def needs_batch(module: nn.Module) -> bool:
    """Whether a module is a batch norm without statistics: it computes with its batch always."""
    if not isinstance(module, BatchNorm):
        return False
    norm: Any = module
    return norm.running_mean is None or norm.running_var is None


def norm_affine(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Return factor and summand of a batch norm, in float64; ``None`` without statistics."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


@torch.no_grad()
def scale_product(product: WeightedLayer, scale: Tensor, shift: Tensor) -> None:
    """Multiply and shift the outputs of a product, in place: what a norm behind it computes."""
    if product.bias is not None:
        shift = shift + product.bias.double() * scale
    values = product.weight
    write_weight(product, values.double() * scale.reshape(-1, *[1] * (values.ndim - 1)))
    product.bias = nn.Parameter(shift.to(values.dtype))


def fold_into(product: WeightedLayer, norm: Any) -> str | None:
    """Fold a norm into the product before it, in place, or return why it cannot be."""
    affine, rule = norm_affine(norm), connectivity(product)
    if affine is None:
        return "has no running statistics to fold. It needs track_running_stats=True."
    if rule is not None and rule.signs is not None and bool((affine[0] < 0).any()):
        return (
            "has a negative weight, which turns the signs around that the product before it was "
            "given (tt.snn.connect). Make it positive, or leave signs out."
        )
    scale_product(product, *affine)
    return None
