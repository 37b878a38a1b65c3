"""Population coding: encode a value as the activity of neurons with Gaussian receptive fields."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_positive
from tracetorch.encode.values import check_values


def population(
    x: Tensor, num_neurons: int, *, low: float = 0.0, high: float = 1.0, overlap: float = 1.5
) -> Tensor:
    """Compute the activity of Gaussian receptive fields that tile a range, in (0, 1].

    ::

        activity[i] = exp(-(x - centre[i])² / (2 width²)),   i = 1 … n
        centre[i] = low + (i - 3/2) (high - low) / (n - 2)
        width = (high - low) / (overlap (n - 2))

    The outermost centres lie half a spacing outside the range. Activities are not spikes: encode
    them with :func:`rate` or :func:`latency`. They are differentiable.

    Args:
        x: values, of one sample or over time; best in [low, high].
        num_neurons: neurons for each value, at least 3.
        low: the lower end of the range.
        high: the upper end.
        overlap: beta in the paper, positive: the fields are narrower the larger it is.

    Shape:
        ``[...]`` to ``[..., num_neurons]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``num_neurons`` not an integer.
        ValueError: fewer than 3 neurons, ``low`` not below ``high``, ``overlap`` not positive.

    Example:
        >>> population(torch.tensor([0.5]), 5)
        tensor([[0.0111, 0.3247, 1.0000, 0.3247, 0.0111]])
        >>> from tracetorch.encode import latency
        >>> latency(population(torch.rand(8, 4), 6), steps=20).shape
        torch.Size([20, 8, 4, 6])

    Reference:
        S. M. Bohte, J. N. Kok and H. La Poutré, "Error-backpropagation in temporally encoded
        networks of spiking neurons", Neurocomputing 48 (2002), section 4.
    """
    check_values("x", x)
    n = check_count("num_neurons", num_neurons)
    if n < 3:
        raise ValueError(f"num_neurons must be at least 3 to tile a range, got {n}.")
    if not (low < high and abs(low) < float("inf") and high < float("inf")):
        raise ValueError(f"low must be below high, both finite, got {low} and {high}.")
    check_positive("overlap", overlap)
    # n - 2 spacings fit between low and high, since the outermost centres lie outside
    spacing = (high - low) / (n - 2)
    centre = low + (torch.arange(n, dtype=x.dtype, device=x.device) - 0.5) * spacing
    distance = (x.unsqueeze(-1) - centre) * (overlap / spacing)
    return torch.exp(-distance.square() / 2)
