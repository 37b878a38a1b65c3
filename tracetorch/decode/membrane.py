"""Decode a membrane that does not spike: its last or its maximum value."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.decode.descriptions import describe_decoder
from tracetorch.ragged import check_mask, check_sequence, filled


@describe_decoder
def last(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the value at the last real step.

    Args:
        x: a membrane, or any other signal.

    Example:
        >>> mem = torch.tensor([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7]])
        >>> last(mem, mask=torch.tensor([[True, True], [True, True], [True, False]]))
        tensor([0.3000, 0.6000])
    """
    check_sequence("x", x)
    check_mask(mask, "x", x)
    if mask is None:
        return x[-1]
    # argmax returns the first of several maxima: in reversed time the last real step
    steps = len(mask) - 1 - mask.flip(0).byte().argmax(0)
    return x[steps, torch.arange(x.shape[1], device=x.device)]


@describe_decoder
def maximum(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the maximum over the real steps; equal maxima share the gradient.

    Args:
        x: a membrane, or any other signal.

    Example:
        >>> mem = torch.tensor([[0.1, 0.5], [0.9, 0.6], [0.3, 0.7]])
        >>> maximum(mem)
        tensor([0.9000, 0.7000])

    Reference:
        B. Cramer et al., "The Heidelberg spiking data sets for the systematic evaluation of
        spiking neural networks", IEEE TNNLS 33 (2022): classification by the maximum over time.
    """
    check_sequence("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}. Convert with .float().")
    check_mask(mask, "x", x)
    # amax shares the gradient among equal maxima; max would give it to one of them
    return filled(x, mask, -torch.inf).amax(0)
