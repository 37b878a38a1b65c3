"""Regularise activity: bound the firing rates of neurons, and penalise spikes or silence.

Each regulariser takes one tensor of spikes, or a mapping of them as ``tt.unroll(..., record=)``
returns it, and then sums over the layers. Record spiking layers only: the "output" of a readout is
its membrane. Negative spikes count as spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from tracetorch import decode
from tracetorch.decode.decoders import magnitude
from tracetorch.loss.shared import (
    Reduction,
    check_positive_scalar,
    describe_activity,
    describe_pooled_activity,
    mean_over_neurons,
    reduce_batch,
)
from tracetorch.ragged import as_floating, check_mask, check_sequence, lengths

Spikes: TypeAlias = Tensor | Mapping[str, Tensor]
_NO_SPIKES = frozenset({"input", "mem", "syn", "rec"})  # names under which no layer has spikes


def _sum_over_layers(
    spikes: Spikes, mask: Tensor | None, reduction: Reduction, penalty: Callable[[Tensor], Tensor]
) -> Tensor:
    """Average ``penalty``, ``[T, B, ...]`` to ``[B, ...]``, over neurons and sum it over layers."""
    layers = dict(spikes) if isinstance(spikes, Mapping) else {"spikes": spikes}
    if not layers:
        raise ValueError("spikes is an empty mapping: record some layers, record=['*.output'] say.")
    paths = {name.removesuffix("output") for name in layers if name.rpartition(".")[2] == "output"}
    states = [name for name in layers if name.rpartition(".")[2] in _NO_SPIKES]
    if others := [name for name in states if name[: name.rfind(".") + 1] in paths]:
        raise ValueError(
            f"spikes holds {', '.join(map(repr, others[:4]))} beside the output of the same layer: "
            "what is no spike would count as one. Record outputs alone, record=['*.output'] say."
        )
    for name, layer in layers.items():
        check_sequence(name, layer, batched=True)
        check_mask(mask, name, layer)
    # means over neurons, so that wide layers do not outweigh narrow ones
    terms = [mean_over_neurons(penalty(as_floating(layer))) for layer in layers.values()]
    if len({len(term) for term in terms}) > 1:
        shapes = {name: list(layer.shape) for name, layer in layers.items()}
        raise ValueError(f"the layers must have one batch, got the shapes {shapes}.")
    return reduce_batch(sum(terms[1:], terms[0]), reduction)


def _spike_counts(spikes: Tensor, mask: Tensor | None, pooled: bool) -> Tensor:
    """Count the spikes of each neuron, ``[B, ...]``, or ``[1, ...]`` where ``pooled``."""
    counts = decode.count(magnitude(spikes), mask=mask)
    return counts.sum(0, keepdim=True) if pooled else counts


@describe_pooled_activity
def rate_bounds(
    spikes: Spikes,
    lower: float = 0.0,
    upper: float = 1.0,
    *,
    pooled: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Penalise firing rates outside of two bounds.

    ::

        loss = mean_i [max(0, lower - rate[i])² + max(0, rate[i] - upper)²]

    Args:
        lower: lowest rate without a penalty, in spikes per step.
        upper: highest rate without a penalty.
        pooled: average rates over the whole batch, so that a neuron may be silent in some samples.

    Raises:
        ValueError: the bounds are not ``0 <= lower <= upper``.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> rate_bounds(spikes, 0.1, 0.6)  # (0.4² + 0.1²) / 2
        tensor(0.0850)

    Reference:
        F. Zenke and T. P. Vogels, "The remarkable robustness of surrogate gradient learning for
        instilling complex function in spiking neural networks", Neural Computation 33 (2021):
        lower and upper bounds on activity, there on spike counts.
    """
    if not 0 <= lower <= upper:
        raise ValueError(f"the bounds must be 0 <= lower <= upper, got {lower} and {upper}.")

    def penalty(x: Tensor) -> Tensor:
        steps = lengths(x, mask)
        # pooled over the batch, the rate is over the real steps of all samples
        if pooled:
            steps = steps.sum(0, keepdim=True) if mask is not None else steps * x.shape[1]
        rate = _spike_counts(x, mask, pooled) / steps
        return (lower - rate).relu().square() + (rate - upper).relu().square()

    return _sum_over_layers(spikes, mask, reduction, penalty)


@describe_pooled_activity
def silence(
    spikes: Spikes,
    minimum: float = 1.0,
    *,
    pooled: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Penalise silence: neurons that fire less than ``minimum`` times.

    ::

        loss = mean_i max(0, minimum - count[i])²

    Args:
        minimum: lowest number of spikes without a penalty, per sequence, or per batch if
            ``pooled``.
        pooled: count over the whole batch: only neurons silent in every sample are penalised.

    Raises:
        ValueError: ``minimum`` is not positive.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> silence(spikes)  # the second neuron never fires
        tensor(0.5000)

    Reference:
        As :func:`rate_bounds`: the lower bound on spike counts.
    """
    check_positive_scalar("minimum", minimum)
    return _sum_over_layers(
        spikes,
        mask,
        reduction,
        lambda x: (minimum - _spike_counts(x, mask, pooled)).relu().square(),
    )


@describe_activity
def spike_l1(
    spikes: Spikes, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Penalise spikes by the mean firing rate.

    ::

        loss = mean_i rate[i],   rate = sum_t |spikes[t]| / T

    A silent step has the gradient 0: only spikes are penalised.

    Example:
        >>> spike_l1(torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]]))
        tensor(0.7500)

    Reference:
        T. Pellegrini, R. Zimmer and T. Masquelier, "Low-activity supervised convolutional spiking
        neural networks applied to speech commands recognition", IEEE SLT 2021, penalise spikes.
    """
    return _sum_over_layers(spikes, mask, reduction, lambda x: decode.rate(x.abs(), mask=mask))


@describe_activity
def spike_l2(
    spikes: Spikes, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Penalise the most active neurons by the mean of squared firing rates.

    ::

        loss = mean_i rate[i]²,   rate = sum_t |spikes[t]| / T

    Rates are squared and not spikes, since a spike of 1 is its own square. A silent step has the
    gradient 0.

    Example:
        >>> spike_l2(torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]]))  # (1² + 0.5²) / 2
        tensor(0.6250)

    Reference:
        As :func:`rate_bounds`: upper bounds by squared activity, here with the bound 0.
    """
    return _sum_over_layers(
        spikes, mask, reduction, lambda x: decode.rate(x.abs(), mask=mask).square()
    )
