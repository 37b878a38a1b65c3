"""Says what to do when ``backward`` runs a second time through steps it has already consumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_TOKEN = torch.empty(0, device="cpu")  # saved by every guard; only whether it was freed is asked


@contextmanager
def explained() -> Iterator[None]:
    """Around the reading of ``ctx.saved_tensors``: says what to do where they are gone."""
    try:
        yield
    except RuntimeError as freed:
        raise RuntimeError(
            "backward() reached time steps that an earlier backward() has already freed: the "
            "states still carry their graph. Call detach_states() after each backward() to go "
            "on from the values (truncated BPTT), or zero_states() to start a new sequence; "
            "backward(retain_graph=True) keeps the graph at the price of its memory."
        ) from freed


class _Guard(torch.autograd.Function):
    """Identity on what a step gives away; its backward notices that the graph behind it is gone."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(_TOKEN)
        # detach, unlike view_as, lets a user go on in place on what comes out
        return tuple(value.detach() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with explained():
            ctx.saved_tensors  # noqa: B018 (reading them is the test)
        return grads


def guard(values: list[Tensor]) -> list[Tensor]:
    """``values``, the same in number and size; a second ``backward`` through them is explained.

    Only where there is a graph, and where PyTorch runs it step by step: under ``torch.compile`` and
    ``torch.func`` its own message stands.
    """
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or not any(value.requires_grad for value in values)
    ):
        return values
    return list(_Guard.apply(*values))  # type: ignore[no-untyped-call]
