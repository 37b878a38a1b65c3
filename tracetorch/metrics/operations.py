"""What a run costs in operations, by NeuroBench's definitions and equal to its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tracetorch.metrics.connections import uncounted
from tracetorch.metrics.observe import Seen, observe


@dataclass(frozen=True)
class SynapticOperations:
    """Products of a weight and an input, per sample, summed over its time steps.

    An operation is *effective* where neither is zero. At a step whose inputs to a layer are all 0,
    1 or -1, it adds a weight (AC); otherwise it multiplies one too (MAC). Biases are not counted.

    Args:
        effective_macs: multiply-accumulates.
        effective_acs: accumulates.
        dense: all products, zeros too: what hardware takes that cannot skip them.

    Example:
        >>> SynapticOperations(effective_macs=0.0, effective_acs=12.0, dense=40.0).effective
        12.0
    """

    effective_macs: float
    effective_acs: float
    dense: float

    @property
    def effective(self) -> float:
        """Both kinds together: the SynOps of neuromorphic hardware."""
        return self.effective_macs + self.effective_acs


def synaptic_operations(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> SynapticOperations:
    """Effective and dense operations of the linear and convolutional layers, per sample.

    The model runs from rest and in evaluation mode, and is as before after it.

    Args:
        model: any ``nn.Module``.
        x: the inputs ``[T, B, ...]``, as for ``tt.unroll``.
        steps: as for ``tt.unroll``; NeuroBench counts each step, so it is done here.
        by: as for ``tt.unroll``.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or a layer multiplies in a way that is not counted
            (a transposed convolution, attention, ``nn.RNN``).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), LIF(3))
        >>> synaptic_operations(net, torch.eye(4).expand(2, 4, 4))
        SynapticOperations(effective_macs=0.0, effective_acs=6.0, dense=24.0)

    Reference: Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing
    algorithms and systems", Nature Communications 16 (2025).
    """
    seen, given = observe(model, x, steps=steps, by=by, mask=mask)
    check_counted(seen)
    return operations_of(seen, given.batch)


def activation_sparsity(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> float:
    """The share of zeros in the outputs of all activations: neurons that spike, ReLU, sigmoid.

    The model runs from rest and in evaluation mode, and is as before after it.

    Args:
        model: any ``nn.Module``.
        x: the inputs ``[T, B, ...]``, as for ``tt.unroll``.
        steps: as for ``tt.unroll``.
        by: as for ``tt.unroll``.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no activation.

    Example:
        >>> net = nn.Sequential(LIF(3), nn.ReLU())
        >>> activation_sparsity(net, torch.zeros(5, 2, 3))
        1.0

    Reference: Yik et al., "The NeuroBench framework", Nature Communications 16 (2025).
    """
    found, _ = observe(model, x, steps=steps, by=by, mask=mask)
    active = [seen for seen in found if seen.activates and seen.values]
    if not active:
        raise ValueError(
            f"{type(model).__name__} has no activation: no neuron that spikes, ReLU or sigmoid was "
            "called."
        )
    return 1 - sum(seen.nonzero for seen in active) / sum(seen.values for seen in active)


def membrane_updates(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
) -> float:
    """Changes of membranes per sample: each at the first step, then those of another value.

    The model runs from rest and in evaluation mode, and is as before after it.

    Args:
        model: any ``nn.Module``.
        x: the inputs ``[T, B, ...]``, as for ``tt.unroll``.
        steps: as for ``tt.unroll``.
        by: as for ``tt.unroll``.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.

    Raises:
        TypeError, ValueError: as ``tt.unroll``; or the model has no neuron layer.

    Example:
        >>> membrane_updates(LIF(3), torch.zeros(5, 2, 3))
        3.0

    Reference: Yik et al., "The NeuroBench framework", Nature Communications 16 (2025).
    """
    check_neurons(model)
    seen, given = observe(model, x, steps=steps, by=by, mask=mask)
    return sum(each.updates for each in seen) / given.batch


def check_neurons(model: nn.Module) -> None:
    """Raise ``ValueError`` where nothing in the model has a membrane."""
    from tracetorch.probe.layers import neurons_of

    neurons_of(model)


def check_counted(seen: list[Seen]) -> None:
    """Raise ``ValueError`` where a layer multiplies in a way that is not counted."""
    other = uncounted([(each.path, each.module) for each in seen])
    if other is not None:
        raise ValueError(
            f"{other} multiplies by weights in a way that is not counted: nn.Linear, nn.Conv1d, "
            "nn.Conv2d and nn.Conv3d are. Count the parts of the model that consist of those."
        )


def operations_of(seen: list[Seen], batch: int) -> SynapticOperations:
    """The sum over modules, per sample."""
    return SynapticOperations(
        sum(each.tally.macs for each in seen) / batch,
        sum(each.tally.acs for each in seen) / batch,
        sum(each.tally.dense for each in seen) / batch,
    )
