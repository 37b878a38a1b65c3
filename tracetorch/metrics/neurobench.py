"""Count synaptic operations, activation sparsity and membrane updates as NeuroBench does."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from tracetorch.metrics.observe import observe
from tracetorch.metrics.operations import SynapticOperations, check_counted, sum_operations
from tracetorch.probe.layers import neuron_layers


def synaptic_operations(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> SynapticOperations:
    """Count effective and dense operations of all products, per sample.

    Products are those of linear and convolutional layers, and, as they run, of all other modules:
    matrix products (``@``, ``torch.einsum``), attention, and functions such as ``F.linear``. One
    between two activations accumulates in a step where either of them is all 0, 1 or -1; weights
    that are computed from weights alone cost nothing. Elementwise products are not counted.

    The model runs from rest and in evaluation mode, and is restored afterwards.

    Args:
        model: any ``nn.Module``.
        x: the inputs ``[T, B, ...]``, as for ``tt.unroll``.
        steps: as for ``tt.unroll``; every step is counted, also of a constant input.
        by: as for ``tt.unroll``.
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

    The model runs from rest and in evaluation mode, and is restored afterwards.

    Arguments are those of :func:`synaptic_operations`.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no activation.

    Example:
        >>> net = nn.Sequential(LIF(3), nn.ReLU())
        >>> activation_sparsity(net, torch.zeros(5, 2, 3))
        1.0
    """
    modules, _ = observe(model, x, steps=steps, by=by, mask=mask)
    active = [stats for stats in modules if stats.activates and stats.values]
    if not active:
        raise ValueError(
            f"{type(model).__name__} has no activation: no neuron that spikes, ReLU or sigmoid was "
            "called."
        )
    return 1 - sum(stats.nonzero for stats in active) / sum(stats.values for stats in active)


def membrane_updates(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> float:
    """Count membrane updates per sample: all at the first step, then those that change a value.

    The model runs from rest and in evaluation mode, and is restored afterwards.

    Arguments are those of :func:`synaptic_operations`.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no neuron layer.

    Example:
        >>> membrane_updates(LIF(3), torch.zeros(5, 2, 3))
        3.0
    """
    neuron_layers(model)  # raises where nothing has a membrane
    modules, inputs = observe(model, x, steps=steps, by=by, mask=mask)
    return sum(stats.updates for stats in modules) / inputs.batch
