"""A plan as PyTorch sees it: ``torch.ops.tracetorch.forward``, ``.backward``, and ``run``.

The operators take any plan by its key: opaque, with known shapes and a known gradient; so
``torch.compile`` and dispatch modes treat a fused layer as they treat a convolution. Plain tensors
need none of that, and dispatching lists of tensors costs more than a small layer does: :func:`run`
spares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.fuse.layout import layout_of
from tracetorch.fuse.plan import Plan, plan_of, register
from tracetorch.snn.guard import explained

_library = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "forward(str key, Tensor x, Tensor[] states, Tensor[] params) -> Tensor[]",
    "backward(str key, Tensor x, Tensor[] states, Tensor[] params, Tensor marks, Tensor[] grads)"
    " -> Tensor[]",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def _runner(plan: Plan) -> Any:
    """The module that runs a plan's kernels."""
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
    ctx.order = layout_of(x, plan_of(ctx.key).dim).order
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *states, *params, output[-1])


def _gradient(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    plan = plan_of(ctx.key)
    x, states, params, marks, given = _given(ctx, plan, grads[:-1])
    found = torch.ops.tracetorch.backward(ctx.key, x, states, params, marks, given)
    d_x, *rest = _wanted(plan, found)
    return None, d_x, rest[: len(states)], rest[len(states) :]


def _given(
    ctx: Any, plan: Plan, grads: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """What a backward pass reads; zeros where nothing came back."""
    if not all(grad is None or _has_values(grad) for grad in grads):
        raise RuntimeError(
            "a fused time loop takes one incoming gradient at a time. Run what needs a batch of "
            "them under tt.fuse.backend('eager')."
        )
    with explained():
        x, *saved, marks = ctx.saved_tensors
    if layout_of(x, plan.dim).order != ctx.order:
        # a hook on saved tensors brought it back in another order than the marks were written in
        x = x.permute(ctx.order).contiguous().permute([ctx.order.index(d) for d in range(x.ndim)])
    count = len(plan.program.states)
    given = []
    for index, grad in enumerate(grads):
        if grad is None:
            grad = torch.zeros_like(x[0])
            if index == 0 or index > count:
                grad = grad.expand(x.shape)
        given.append(grad)
    return x, saved[:count], saved[count:], marks, given


def _has_values(grad: Tensor) -> bool:
    """Not so a batch of gradients, of ``is_grads_batched`` or ``jacobian(vectorize=True)``."""
    keys = torch._C._dispatch_keys(grad)
    return keys.has(torch._C.DispatchKey.Dense)


def _wanted(plan: Plan, found: list[Tensor]) -> list[Tensor | None]:
    """Gradients of ``x``, states and parameters; ``None`` for one that was not computed."""
    count = 1 + len(plan.program.states)
    trained = [name in plan.trained for name in plan.program.params]
    return [
        found[0] if plan.x else None,
        *found[1:count],
        *(d if kept else None for d, kept in zip(found[count:], trained, strict=True)),
    ]


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


# On plain tensors


def run(plan: Plan, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Outputs, final states and trajectories, part of the graph where the plan has one."""
    if torch._C._len_torch_dispatch_stack() or not all(
        (type(tensor) is Tensor or type(tensor) is nn.Parameter) and not tensor.is_neg()
        for tensor in (x, *states, *params)
    ):
        results = torch.ops.tracetorch.forward(register(plan), x, states, params)[:-1]
        return [
            end if smooth else end.detach()
            for end, smooth in zip(results, _smooth(plan), strict=True)
        ]
    if plan.graph:
        return list(_Run.apply(plan, x, *states, *params))  # type: ignore[no-untyped-call]
    return _runner(plan).forward(plan, x, states, params)[:-1]  # type: ignore[no-any-return]


def _smooth(plan: Plan) -> list[bool]:
    """Whether each result has a gradient; one that has none by step must not seem to have one."""
    names = ("output", *(f"next_{name}" for name in (*plan.program.states, *plan.record)))
    return [name in plan.program.smooth for name in names]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(plan.program.states)
        states, params = list(tensors[:count]), list(tensors[count:])
        *results, marks = _runner(plan).forward(plan, x, states, params)
        ctx.plan, ctx.order = plan, layout_of(x, plan.dim).order
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, marks)
        rough = [
            end for end, is_smooth in zip(results, _smooth(plan), strict=True) if not is_smooth
        ]
        if rough:
            ctx.mark_non_differentiable(*rough)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        resolved = [grad if grad is None else grad.resolve_neg() for grad in grads]
        given = _given(ctx, plan, resolved)
        if torch.is_grad_enabled():  # the operator says that there is no second derivative
            found = torch.ops.tracetorch.backward(register(plan), *given)
        else:
            found = _runner(plan).backward(plan, *given)
        return None, *_wanted(plan, found)
