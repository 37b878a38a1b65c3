"""Measure outputs: accuracy, firing rate, sparsity, dead and saturated neurons."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tracetorch import decode
from tracetorch.core.checks import check_choice, check_integer, check_share
from tracetorch.ragged import TIME_FIRST, aligned, check_mask, check_sequence

By: TypeAlias = Literal["rate", "count", "first_spike", "last", "maximum"]

SATURATED = 0.9  # of the steps with a spike, from which a neuron is saturated


def accuracy(x: Tensor, target: Tensor, *, by: By = "rate", mask: Tensor | None = None) -> Tensor:
    """Return the share of samples that are classified correctly.

    The predicted class is that of the highest rate, count, last or maximal membrane, or of the
    earliest first spike; of several, the first. A sample with equal scores for all classes, such as
    one without any spike, or with NaN among them, has no prediction and counts as wrong.

    Args:
        x: outputs of the network.
        target: the classes.
        by: the decoder, a function of ``tt.decode``.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``x`` is ``[T, B, C]``, ``target`` ``[B]``; a scalar.

    Raises:
        TypeError: a tensor is of the wrong kind.
        ValueError: the shapes do not fit, there is no sample, a class is out of range, or ``by`` is
            unknown.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])
        >>> accuracy(spikes, torch.tensor([0, 0]))
        tensor(0.5000)
    """
    if str(by) == "mean":  # as losses call it
        raise ValueError("by must be 'rate' for the mean over time, of membranes too, got 'mean'.")
    check_choice("by", by, get_args(By))
    scores: Tensor = getattr(decode, by)(x, mask=mask)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype is torch.bool:
        is_tensor = isinstance(target, Tensor)
        got = f"a tensor of {target.dtype}" if is_tensor else type(target).__name__
        raise TypeError(
            f"target must be a tensor of integers, the classes, got {got}."
            + " Wrap it: torch.as_tensor(...)." * (not is_tensor)
        )
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"accuracy needs x [T, B, C] and target [B], got {list(x.shape)} and "
            f"{list(target.shape)}." + TIME_FIRST * (target.shape == x.shape[:1])
        )
    classes = scores.shape[1]
    if bool(((target < 0) | (target >= classes)).any()):
        raise ValueError(
            f"target has the classes {int(target.min())} to {int(target.max())}, the output has "
            f"{classes} neurons, one for each of the classes 0 to {classes - 1}."
        )
    if not len(scores):
        raise ValueError(f"x has no sample: its shape is {list(x.shape)}, [T, B, C].")
    if scores.dtype is torch.bool:
        scores = scores.byte()  # argmax takes numbers
    predicted = scores.argmin(1) if by == "first_spike" else scores.argmax(1)
    # argmax of equal scores is class 0, and that of NaN where it is first: right for some samples
    undecided = (scores == scores[:, :1]).all(1) | scores.isnan().any(1)
    hits = (predicted == target.to(predicted.device)) & ~undecided
    return hits.double().mean().to(torch.get_default_dtype())


def firing_rate(spikes: Tensor, *, dim: int | None = None, mask: Tensor | None = None) -> Tensor:
    """Return the firing rate: the share of steps with a spike, 1 for a spike at every step.

    ::

        rate = |{t, b, ...: spikes != 0}| / |{t, b, ...}|

    NaN is neither a spike nor silence: the rate of what holds it is NaN.

    Args:
        spikes: spikes of any sign and scale.
        dim: the layer's neuron dimension, such as -1 or -3, for a rate per neuron; without it, one
            rate for all.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to a scalar, or to ``[N]``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``spikes`` has no such dimension, or no sample, or ``mask`` does not fit.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]])
        >>> firing_rate(spikes), firing_rate(spikes, dim=-1)
        (tensor(0.7500), tensor([1.0000, 0.5000]))
    """
    fired, total = count_spikes(spikes, dim=dim, mask=mask, samples=True)
    return (fired / total).to(torch.get_default_dtype())


def sparsity(activations: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the share of zeros, 1 for no spikes: NeuroBench's activation sparsity of one layer.

    Arguments and errors are those of :func:`firing_rate`; the outputs of any layer will do.

    Shape:
        ``[T, B, ...]`` to a scalar.

    Example:
        >>> sparsity(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
        tensor(0.7500)

    Reference: Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing
    algorithms and systems", Nature Communications 16 (2025).
    """
    return 1 - firing_rate(activations, mask=mask)


def dead(spikes: Tensor, *, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Mark the dead neurons, which fire at no step, sample or position.

    Arguments and errors are those of :func:`firing_rate`; in a convolution a neuron is a channel.

    Shape:
        ``[T, B, ...]`` to ``[N]`` booleans; ``.float().mean()`` is the share.

    Example:
        >>> dead(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
        tensor([False,  True])
    """
    return count_spikes(spikes, dim=dim, mask=mask, samples=True)[0] == 0


def saturated(
    spikes: Tensor, *, dim: int = -1, above: float = SATURATED, mask: Tensor | None = None
) -> Tensor:
    """Mark the saturated neurons, which fire at nearly every step and so carry no information.

    Args:
        spikes: spikes of any sign and scale.
        dim: the layer's neuron dimension; in a convolution a neuron is a channel.
        above: the firing rate from which a neuron is saturated, in [0, 1].
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to ``[N]`` booleans; ``.float().mean()`` is the share.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``spikes`` has no such dimension, or no sample, ``mask`` does not fit, or
            ``above`` is not in [0, 1].

    Example:
        >>> saturated(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor([ True, False])
    """
    check_share("above", above)
    fired, total = count_spikes(spikes, dim=dim, mask=mask, samples=True)
    return fired >= above * total


def firing_shares(fired: Tensor, total: Tensor) -> tuple[float, float, float]:
    """Return the firing rate, and the shares of dead and saturated neurons, by their counts."""
    return (
        float(fired.sum() / total.sum()),
        float((fired == 0).double().mean()),
        float((fired >= SATURATED * total).double().mean()),
    )


def count_spikes(
    spikes: Tensor, *, dim: int | None, mask: Tensor | None, samples: bool = False
) -> tuple[Tensor, Tensor]:
    """Count spikes, NaN where one is NaN, and the steps at which there could be one."""
    check_sequence("spikes", spikes, batched=True)
    check_mask(mask, "spikes", spikes)
    # of no sample a neuron would be both dead and saturated
    if samples and not spikes.shape[1]:
        raise ValueError(f"spikes has no sample: its shape is {list(spikes.shape)}, [T, B, ...].")
    fired = spikes != 0
    real = torch.ones_like(fired) if mask is None else aligned(mask, spikes).expand_as(spikes)
    dims = list(range(spikes.ndim))
    if dim is not None:
        dims.remove(_neuron_dim(dim, spikes))
    counts = (fired & real).sum(dims, dtype=torch.float64)
    unknown = (spikes.isnan() & real).sum(dims) > 0
    return counts.masked_fill(unknown, torch.nan), real.sum(dims, dtype=torch.float64)


def _neuron_dim(dim: object, spikes: Tensor) -> int:
    # A layer counts the dimensions of one step: a nonnegative one lies one further with time.
    neuron_dim = check_integer("dim", dim)
    neuron_dim += spikes.ndim if neuron_dim < 0 else 1
    if not 1 <= neuron_dim < spikes.ndim:
        raise ValueError(
            f"dim is {dim}, but one step of spikes has the shape {list(spikes.shape[1:])}."
        )
    return neuron_dim
