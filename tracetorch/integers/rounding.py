"""Round to integers: to the nearest, down, towards zero or at random, straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import forward_ad_active, keep_absent


class _StraightThrough(torch.autograd.Function):
    """Return ``value``, and send the gradient to ``x``."""

    # forward and backward are plain tensor operations, so torch.func can derive the rule
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        keep_absent(ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return grad, None


class _ForwardModeStraightThrough(_StraightThrough):
    """The same with a rule for forward mode, which ``torch.compile`` refuses to trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.clone()


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Straight-through estimator: ``value`` forward, the gradient of ``x`` backward.

    What rounds has a derivative of zero almost everywhere, and teaches nothing; the estimator
    passes the gradient as if it had not rounded.

    Args:
        x: what the gradient goes to.
        value: what the result is, of the shape and dtype of ``x``. It gets no gradient.

    Example:
        >>> x = torch.tensor([0.25, 1.75], requires_grad=True)
        >>> y = straight_through(x, torch.floor(x))
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 1.0], [1.0, 1.0])

    Reference: Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic
    neurons for conditional computation", arXiv:1308.3432 (2013).
    """
    function = _ForwardModeStraightThrough if forward_ad_active() else _StraightThrough
    result: Tensor = function.apply(x, value.detach())  # type: ignore[no-untyped-call]
    return result


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; the gradient passes at the ends as well, where PyTorch's depends on its release."""
    inside = (x >= low) & (x <= high)
    return straight_through(torch.where(inside, x, x.detach()), x.detach().clamp(low, high))


def round(x: Tensor) -> Tensor:  # noqa: A001 (the name that PyTorch and NumPy have for it)
    """Round to the nearest integer; of two that are equally near, to the even one.

    ::

        y = rint(x),   dy/dx = 1

    Args:
        x: any numbers of magnitude up to 2^24 in float32, 2^53 in float64; beyond, every number is
            an integer already, and returned.

    Example:
        >>> x = torch.tensor([0.5, 1.5, -2.6], requires_grad=True)
        >>> y = round(x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 2.0, -3.0], [1.0, 1.0, 1.0])
    """
    return straight_through(x, torch.round(x.detach()))


def floor(x: Tensor) -> Tensor:
    """Round down, towards minus infinity.

    ::

        y = floor(x),   dy/dx = 1

    Args:
        x: any numbers, as for :func:`round`.

    Example:
        >>> floor(torch.tensor([1.75, -1.25])).tolist()
        [1.0, -2.0]
    """
    return straight_through(x, torch.floor(x.detach()))


def trunc(x: Tensor) -> Tensor:
    """Round towards zero.

    ::

        y = sign(x) floor(|x|),   dy/dx = 1

    Args:
        x: any numbers, as for :func:`round`.

    Example:
        >>> trunc(torch.tensor([1.75, -1.25])).tolist()
        [1.0, -1.0]
    """
    return straight_through(x, torch.trunc(x.detach()))


def stochastic_round(x: Tensor, uniform: Tensor) -> Tensor:
    """Round up with the probability of the fraction, otherwise down: right on average.

    ::

        y = floor(x) + (1 if uniform < x - floor(x) else 0),   dy/dx = 1

    An integer stays what it is, whatever the number drawn. Give it the numbers of a
    ``snn.Noise(..., distribution="uniform")`` that the neuron lists among its inputs: they come
    from a counter (Threefry), and are the same by step, by layer, in segments and on every backend.

    Args:
        x: any numbers, as for :func:`round`.
        uniform: random numbers in (0, 1), of the shape of ``x``. They have no gradient.

    Example:
        >>> x, uniform = torch.tensor([2.25, 2.25, 3.0]), torch.tensor([0.2, 0.3, 0.1])
        >>> stochastic_round(x, uniform).tolist()
        [3.0, 2.0, 3.0]
    """
    value = x.detach()
    below = torch.floor(value)
    # the fraction is exact, where x + uniform would round
    return straight_through(x, below + (uniform < value - below).to(x.dtype))
