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
        if "a second time" not in str(freed):  # unpacking a saved tensor may run any code
            raise
        raise RuntimeError(
            "backward() reached time steps that an earlier backward() has already freed: the "
            "states still carry their graph. Call detach_states() after each backward() to go "
            "on from the values (truncated BPTT), or zero_states() to start a new sequence; "
            "backward(retain_graph=True) keeps the graph at the price of its memory. Two losses on "
            "one step are added up first."
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
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return values
    # a state without a graph, one that a step detached say, must not be given one
    watched = [value for value in values if value.requires_grad]
    if not watched:
        return values
    guarded = iter(_Guard.apply(*watched))  # type: ignore[no-untyped-call]
    return [next(guarded) if value.requires_grad else value for value in values]
