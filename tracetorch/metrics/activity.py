"""How much the neurons of a layer fire."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from tracetorch.core.checks import check_integer
from tracetorch.ragged import aligned, check_mask, check_sequence


def firing_rate(spikes: Tensor, *, dim: int | None = None, mask: Tensor | None = None) -> Tensor:
    """The share of steps with a spike: 1 is a spike at every step.

    ::

        rate = |{t, b, ...: spikes != 0}| / |{t, b, ...}|

    Args:
        spikes: spikes of any sign and scale.
        dim: the layer's neuron dimension, -1 or -3 say, for one rate per neuron; without it, one.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to a scalar, or to ``[N]``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``spikes`` has no such dimension, or ``mask`` does not fit.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]])
        >>> firing_rate(spikes), firing_rate(spikes, dim=-1)
        (tensor(0.7500), tensor([1.0000, 0.5000]))
    """
    fired, chances = firings(spikes, dim=dim, mask=mask)
    return (fired / chances).to(torch.get_default_dtype())


def sparsity(activations: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The share of zeros: 1 is silence. NeuroBench's activation sparsity, of one layer.

    Args:
        activations: spikes, or the outputs of any other layer.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to a scalar.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``mask`` does not fit.

    Example:
        >>> sparsity(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
        tensor(0.7500)

    Reference: Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing
    algorithms and systems", Nature Communications 16 (2025).
    """
    return 1 - firing_rate(activations, mask=mask)


def dead(spikes: Tensor, *, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Which neurons never fire, whatever the sample and the place.

    Args:
        spikes: spikes of any sign and scale.
        dim: the layer's neuron dimension; of a convolution a neuron is a channel.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to ``[N]`` booleans; ``.float().mean()`` is the share.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``spikes`` has no such dimension, or ``mask`` does not fit.

    Example:
        >>> dead(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
        tensor([False,  True])
    """
    return firings(spikes, dim=dim, mask=mask)[0] == 0


def saturated(
    spikes: Tensor, *, dim: int = -1, above: float = 0.9, mask: Tensor | None = None
) -> Tensor:
    """Which neurons fire at nearly every step, so that their spikes tell nothing.

    Args:
        spikes: spikes of any sign and scale.
        dim: the layer's neuron dimension; of a convolution a neuron is a channel.
        above: the firing rate from which a neuron is saturated.
        mask: ``[T, B]``, true where a step is real.

    Shape:
        ``[T, B, ...]`` to ``[N]`` booleans; ``.float().mean()`` is the share.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``spikes`` has no such dimension, ``mask`` does not fit, or ``above`` is not in
            (0, 1].

    Example:
        >>> saturated(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor([ True, False])
    """
    check_above(above)
    fired, chances = firings(spikes, dim=dim, mask=mask)
    return fired >= above * chances


def check_above(above: object) -> None:
    """Raise unless ``above`` is a rate that a neuron can reach."""
    if isinstance(above, bool) or not isinstance(above, numbers.Real):
        raise TypeError(f"above must be a number, got {above!r}.")
    if not 0 < float(above) <= 1:
        raise ValueError(f"above must lie in (0, 1], the share of steps with a spike, got {above}.")


def firings(spikes: Tensor, *, dim: int | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number of spikes and of chances for one, in float64; per neuron where ``dim`` is given."""
    check_sequence("spikes", spikes, batched=True)
    check_mask(mask, "spikes", spikes)
    fired = spikes != 0
    chances = torch.ones_like(fired) if mask is None else aligned(mask, spikes).expand_as(spikes)
    fired = fired & chances
    if dim is None:
        return fired.sum(dtype=torch.float64), chances.sum(dtype=torch.float64)
    at = check_integer("dim", dim)
    at = at + spikes.ndim if at < 0 else at + 1
    if not 1 <= at < spikes.ndim:
        raise ValueError(
            f"dim is {dim}, but one step of spikes has the shape {list(spikes.shape[1:])}."
        )
    others = [i for i in range(spikes.ndim) if i != at]
    return fired.sum(others, dtype=torch.float64), chances.sum(others, dtype=torch.float64)
