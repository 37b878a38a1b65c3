"""Explain a second ``backward`` through time steps whose graph an earlier one has freed.

Output and states of a step pass through one identity node that saves an empty tensor. When an
earlier ``backward`` has freed it, the second one says ``detach_states()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import transformed_by

_TOKEN = torch.empty(0, device="cpu")  # saved by every node below; only its presence matters


def saved_tensors(ctx: Any) -> Sequence[Any]:
    """Return ``ctx.saved_tensors``; explain what to do where they are freed."""
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as freed:
        if "a second time" not in str(freed):  # unpacking a saved tensor may run any code
            raise
        raise RuntimeError(
            "backward() reached time steps that an earlier backward() has already freed: the "
            "states still carry their graph. Call detach_states() after each backward() to go "
            "on from the values (truncated BPTT), or zero_states() to start a new sequence; "
            "backward(retain_graph=True) keeps the graph at the price of its memory. Two losses on "
            "one step are added up first."
        ) from freed


def noticed(*tensors: Tensor | None) -> list[Tensor]:
    """Return tensors that a node saves, so that its backward pass raises if they were written to.

    For those that are no arguments of the node, and are read again then. Of tensors of inference
    mode nobody counts writes, and no node can save them.
    """
    return [each for each in tensors if each is not None and not each.is_inference()]


class _IdentityNode(torch.autograd.Function):
    """Identity whose backward pass notices that the graph behind it has been freed."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(_TOKEN)
        # detach, unlike view_as, lets a user change the result in place
        return tuple(map(Tensor.detach, values))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved_tensors(ctx)  # raises where they are freed
        return grads


def explain_double_backward(values: list[Tensor], *, observed: bool = True) -> list[Tensor]:
    """Return ``values`` behind a node that explains a second ``backward`` through them.

    Only where there is a graph, and where PyTorch runs it step by step: under ``torch.compile`` and
    ``torch.func`` its own message remains, and a traced program has no use for the node.
    ``observed`` says whether somebody may trace or transform it, as far as is known.
    """
    if not torch.is_grad_enabled():
        return values
    if observed and (torch.compiler.is_compiling() or transformed_by() is not None):
        return values
    # a state without a graph, one that a step detached say, must not be given one
    for value in values:
        if not value.requires_grad:
            break
    else:  # nearly always
        return list(_IdentityNode.apply(*values))  # type: ignore[no-untyped-call]
    with_graph = [value for value in values if value.requires_grad]
    if not with_graph:
        return values
    others = iter(_IdentityNode.apply(*with_graph))  # type: ignore[no-untyped-call]
    return [next(others) if value.requires_grad else value for value in values]
