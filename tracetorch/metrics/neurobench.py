"""Measure what NeuroBench does: operations, activations and updates of a run, size of a model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.walk import named_modules, named_parameters
from tracetorch.metrics.observe import observe
from tracetorch.metrics.operations import (
    WEIGHTED,
    SynapticOperations,
    check_counted,
    sum_operations,
)
from tracetorch.probe.layers import neuron_layers
from tracetorch.snn.sparse_linear import SparseLinear


def synaptic_operations(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> SynapticOperations:
    """Count effective and dense operations of all products, per sample.

    Products are counted as they run, step by step: of linear and convolutional layers, matrix
    products (``@``, ``torch.einsum``), attention, and functions such as ``F.linear``. One between
    two activations accumulates in a step where either of them is all 0, 1 or -1; weights that are
    computed from weights alone cost nothing. Elementwise products are not counted.

    The model runs from rest and in evaluation mode, and is restored afterwards.

    Args:
        model: any ``nn.Module``.
        x: the inputs ``[T, B, ...]``, as for ``tt.unroll``.
        steps: as for ``tt.unroll``; every step is counted, also of a constant input.
        by: as for ``tt.unroll``; what is counted are single steps whichever it is.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or a layer multiplies in a way that is not counted
            (a transposed convolution, ``nn.RNN``), or one that no mask can follow (attention).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), LIF(3))
        >>> synaptic_operations(net, torch.eye(4).expand(2, 4, 4))
        SynapticOperations(effective_macs=0.0, effective_acs=6.0, dense=24.0)

    Reference: Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing
    algorithms and systems", Nature Communications 16 (2025).
    """
    modules, inputs = observe(model, x, steps=steps, by=by, mask=mask)
    check_counted(modules)
    return sum_operations(modules, inputs.batch)


def activation_sparsity(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> float:
    """Return the share of zeros in the outputs of spiking neurons, ReLU and sigmoid.

    The run and its arguments are those of :func:`synaptic_operations`.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no activation.

    Example:
        >>> net = nn.Sequential(LIF(3), nn.ReLU())
        >>> activation_sparsity(net, torch.zeros(5, 2, 3))
        1.0
    """
    modules, _ = observe(model, x, steps=steps, by=by, mask=mask)
    active = [s for s in modules if isinstance(s.total, Tensor)]
    if not active:
        raise ValueError(
            f"{type(model).__name__} has no activation: no neuron that spikes, ReLU or sigmoid was "
            "called."
        )
    fired = sum(float(torch.as_tensor(stats.fired).sum()) for stats in active)
    return 1 - fired / sum(float(torch.as_tensor(stats.total).sum()) for stats in active)


def membrane_updates(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> float:
    """Count membrane updates per sample: all at the first step, then those that change a value.

    The run and its arguments are those of :func:`synaptic_operations`.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no neuron layer.

    Example:
        >>> membrane_updates(LIF(3), torch.zeros(5, 2, 3))
        3.0
    """
    neuron_layers(model)  # raises where nothing has a membrane
    modules, inputs = observe(model, x, steps=steps, by=by, mask=mask)
    return sum(stats.updates for stats in modules) / inputs.batch


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
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
            weights.extend(module.parameters())
    if not weights:
        raise ValueError(
            f"{type(model).__name__} has no connections: no linear, convolutional or recurrent "
            "layer of PyTorch's."
        )
    zeros = absent + sum(int(torch.count_nonzero(w == 0)) for w in weights)
    return zeros / (absent + sum(w.numel() for w in weights))
