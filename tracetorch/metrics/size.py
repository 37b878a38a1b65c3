"""Parameter count, memory footprint and connection sparsity, as NeuroBench defines them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.walk import named_modules, named_parameters
from tracetorch.snn.sparse_linear import SparseLinear

# Layers whose connections NeuroBench counts: by the weight, in recurrent layers by all parameters.
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def parameter_count(model: nn.Module) -> int:
    """Count the parameter values, shared ones once.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> parameter_count(nn.Sequential(nn.Linear(4, 3), LIF(3)))
        21
    """
    check_module(model)
    return sum(p.numel() for p in named_parameters(model).values())


def footprint(model: nn.Module) -> int:
    """Sum the bytes of all parameters and buffers; states, which depend on the batch, are left out.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> footprint(nn.Sequential(nn.Linear(4, 3), LIF(3)))
        84

    Reference: Yik et al., "The NeuroBench framework", Nature Communications 16 (2025).
    """
    check_module(model)
    buffers = {id(b): b for _, m in named_modules(model) for b in m.buffers(recurse=False)}
    tensors = *named_parameters(model).values(), *buffers.values()
    return sum(t.numel() * t.element_size() for t in tensors)


def connection_sparsity(model: nn.Module) -> float:
    """Return the share of zero weights in linear, convolutional and PyTorch's recurrent layers.

    Where a sparse layer has no edge the weight is zero.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: it has no such layer.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> connection_sparsity(nn.Sequential(layer, LIF(1)))
        0.25

    Reference: Yik et al., "The NeuroBench framework", Nature Communications 16 (2025).
    """
    check_module(model)
    weights: list[Tensor] = []
    absent = 0
    for _, module in named_modules(model):
        if isinstance(module, WEIGHTED):
            weights.append(module.weight)  # NeuroBench leaves biases out
        elif isinstance(module, SparseLinear):
            weights.append(module.edge_weight())
            absent += max(0, module.in_features * module.out_features - module.edges.shape[1])
        elif isinstance(module, _RECURRENT):
            weights.extend(module.parameters())
    if not weights:
        raise ValueError(
            f"{type(model).__name__} has no connections: no linear, convolutional or recurrent "
            "layer of PyTorch's."
        )
    zeros = absent + sum(int(torch.count_nonzero(w == 0)) for w in weights)
    return zeros / (absent + sum(w.numel() for w in weights))
