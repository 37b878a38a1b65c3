"""Make a product with events part of autograd's graph: one node for every kind of product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.core.torch_private import has_values
from tracetorch.events.lists import EventLists


class ProductKind(NamedTuple):
    """A kind of product: linear, convolved, with delays. ``at`` is what else it is computed by."""

    # ``(x, weight, bias, events, at)``, the output
    forward: Callable[[Tensor, Tensor, Tensor | None, EventLists, Any], Tensor]
    # ``(grad, weight, shape of x, at)``, the gradient of ``x``
    by_input: Callable[[Tensor, Tensor, torch.Size, Any], Tensor]
    # ``(grad, events, shape of x, shape of the weight, at)``, that of the weight
    by_weight: Callable[[Tensor, EventLists, torch.Size, torch.Size, Any], Tensor]
    by_bias: Callable[[Tensor], Tensor]  # ``(grad)``, that of the bias


def product(
    kind: ProductKind,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    events: EventLists,
    at: Any = None,
) -> Tensor:
    """Return a product by the events of ``x``, a node of the graph where there is one."""
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        y: Tensor = _Node.apply(kind, x, weight, bias, events, at)  # type: ignore[no-untyped-call]
        return y
    return kind.forward(x, weight, bias, events, at)


class _Node(torch.autograd.Function):
    """Keeps the events for the weight's gradient, and the weight for that of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: ProductKind,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        events: EventLists,
        at: Any,
    ) -> Tensor:
        _, needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            weight if needs_input else None, *(events[1:] if needs_weight else ())
        )
        ctx.kind, ctx.at, ctx.columns = kind, at, events.columns
        ctx.shapes = x.shape, weight.shape
        ctx.set_materialize_grads(False)
        return kind.forward(x, weight, bias, events, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        weight, *lists = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a product with events has no second derivative. Run what needs one under "
                "tt.events.mode('never')."
            )
        if lists and not has_values(grad):  # of is_grads_batched
            raise RuntimeError(
                "a product with events takes one incoming gradient at a time. Run what needs a "
                "batch of them under tt.events.mode('never')."
            )
        kind: ProductKind = ctx.kind
        d_x = d_weight = None
        if weight is not None:
            d_x = kind.by_input(grad, weight, ctx.shapes[0], ctx.at)
        if lists:
            events = EventLists(ctx.columns, *lists)
            shape, weight_shape = ctx.shapes
            d_weight = kind.by_weight(grad.resolve_neg(), events, shape, weight_shape, ctx.at)
        d_bias = kind.by_bias(grad) if ctx.needs_input_grad[3] else None
        return None, d_x, d_weight, d_bias, None, None
