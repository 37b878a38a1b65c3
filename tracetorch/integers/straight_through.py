"""Straight-through gradients: one value forward, the gradient of another backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import forward_ad_active


class _StraightThrough(torch.autograd.Function):
    """Return ``value``, and send the gradient to ``x``."""

    # forward and backward are plain tensor operations, so torch.func can derive the rule
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
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
