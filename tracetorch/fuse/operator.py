"""The operator pair ``torch.ops.tracetorch.forward`` and ``.backward``: any plan, by its key.

PyTorch sees two opaque operators with known shapes and a known gradient; so ``torch.compile``,
autograd and autocast treat a fused layer as they treat a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.fuse.layout import layout_of
from tracetorch.fuse.plan import Plan, plan_of
from tracetorch.snn.guard import explained

_library = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "forward(str key, Tensor x, Tensor[] states, Tensor[] params) -> Tensor[]",
    "backward(str key, Tensor x, Tensor[] states, Tensor[] params, Tensor marks, Tensor[] grads)"
    " -> Tensor[]",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def _runner(plan: Plan) -> Any:
    if plan.backend == "triton":
        from tracetorch.fuse import gpu

        return gpu
    from tracetorch.fuse import cpu

    return cpu


# Forward


def _forward(key: str, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    plan = plan_of(key)
    results: list[Tensor] = _runner(plan).forward(plan, x, states, params)
    return results


def _forward_fake(key: str, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    plan = plan_of(key)
    layout, dtype = layout_of(x, plan.dim), plan.program.dtype
    marks = plan.marks(x.shape[0]) * len(plan.recomputed) * layout.lanes
    return [
        layout.empty(x, steps=x.shape[0], dtype=dtype),
        *(layout.empty(x, steps=None, dtype=dtype) for _ in plan.program.states),
        *(layout.empty(x, steps=x.shape[0], dtype=dtype) for _ in plan.record),
        x.new_empty(marks, dtype=dtype),
    ]


# Backward


def _backward(
    key: str,
    x: Tensor,
    states: list[Tensor],
    params: list[Tensor],
    marks: Tensor,
    grads: list[Tensor],
) -> list[Tensor]:
    plan = plan_of(key)
    results: list[Tensor] = _runner(plan).backward(plan, x, states, params, marks, grads)
    return results


def _backward_fake(
    key: str,
    x: Tensor,
    states: list[Tensor],
    params: list[Tensor],
    marks: Tensor,
    grads: list[Tensor],
) -> list[Tensor]:
    plan = plan_of(key)
    layout, dtype = layout_of(x, plan.dim), plan.program.dtype
    nothing = (0,)
    return [
        layout.empty(x, steps=x.shape[0], dtype=dtype) if plan.x else x.new_empty(nothing),
        *(layout.empty(x, steps=None, dtype=dtype) for _ in states),
        *(
            torch.empty(p.shape if n in plan.trained else nothing, dtype=dtype, device=x.device)
            for n, p in zip(plan.program.params, params, strict=True)
        ),
    ]


# Gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.key, x, states, params = inputs
    ctx.states = len(states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *states, *params, output[-1])


def _gradient(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    with explained():
        x, *saved, marks = ctx.saved_tensors
    plan = plan_of(ctx.key)
    states, params = saved[: ctx.states], saved[ctx.states :]
    given = []
    for index, grad in enumerate(grads[:-1]):
        if grad is None:
            grad = torch.zeros_like(x[0])
            if index == 0 or index > len(states):
                grad = grad.expand(x.shape)
        given.append(grad)
    d_x, *rest = torch.ops.tracetorch.backward(ctx.key, x, states, params, marks, given)
    return (
        None,
        d_x if plan.x else None,
        rest[: len(states)],
        [
            d if name in plan.trained else None
            for name, d in zip(plan.program.params, rest[len(states) :], strict=True)
        ],
    )


def _no_second_gradient(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    raise RuntimeError(
        "a fused time loop has no second derivative. Run what needs one under "
        "tt.fuse.backend('eager')."
    )


_library.impl("forward", _forward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("backward", _backward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("tracetorch::forward", _forward_fake, lib=_library)
torch.library.register_fake("tracetorch::backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    "tracetorch::forward", _gradient, setup_context=_setup, lib=_library
)
torch.library.register_autograd("tracetorch::backward", _no_second_gradient, lib=_library)
