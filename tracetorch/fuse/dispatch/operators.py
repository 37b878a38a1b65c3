"""Register the fused loops as PyTorch operators: ``torch.ops.tracetorch.forward``, ``.backward``.

The operators take any plan by its key: opaque, with known shapes and a known gradient; so
``torch.compile`` and dispatch modes treat a fused layer as they treat a convolution. Plain tensors
need none of that, and dispatching lists of tensors costs more than a small layer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tracetorch.core.torch_private import global_modes_off, has_values, saved_tensors
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.dispatch.plans import plan_of
from tracetorch.fuse.dispatch.trial import is_believed
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.allocation import Layout, allocate_results, layout_of
from tracetorch.fuse.runtime.backend import Grads, Operands, plan_gradients, run_plan

T = TypeVar("T")

_library = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "forward(str key, Tensor[] inputs, Tensor[] states, Tensor[] params) -> Tensor[]",
    "backward(str key, Tensor[] inputs, Tensor[] states, Tensor[] params, Tensor checkpoints,"
    " Tensor[] grads) -> Tensor[]",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "forward", "CompositeExplicitAutograd")
def _forward(key: str, *operands: list[Tensor]) -> list[Tensor]:
    plan, given = plan_of(key), Operands(*operands)
    return run_forward(plan, layout_of(given.inputs[0], plan.dim), given)


@torch.library.register_fake("tracetorch::forward", lib=_library)  # type: ignore[untyped-decorator]
def _forward_fake(key: str, *operands: list[Tensor]) -> list[Tensor]:
    plan, x = plan_of(key), operands[0][0]
    output, ends, records, checkpoints = allocate_results(plan, layout_of(x, plan.dim), x)
    return [output, *ends, *records, checkpoints]


@torch.library.impl(_library, "backward", "CompositeExplicitAutograd")
def _backward(key: str, *operands: Any) -> list[Tensor]:
    *values, checkpoints, grads = operands
    plan, given = plan_of(key), Operands(*values)
    results = run_backward(plan, layout_of(given.inputs[0], plan.dim), given, checkpoints, grads)
    # an operator may not return one tensor twice, as the runtimes do where there is no gradient
    return [result if result.numel() else result.clone() for result in results]


@torch.library.register_fake("tracetorch::backward", lib=_library)  # type: ignore[untyped-decorator]
def _backward_fake(key: str, *operands: Any) -> list[Tensor]:
    inputs, states, params, *_ = operands
    plan, x = plan_of(key), inputs[0]
    layout, dtype, nothing = layout_of(x, plan.dim), plan.program.dtype, (0,)
    new = iter(layout.allocate(x, dtype, sequences=len(plan.differentiated)))
    of_inputs = [
        next(new) if name in plan.differentiated else x.new_empty(nothing, dtype=dtype)
        for name in plan.program.inputs
    ]
    of_params = [
        x.new_empty(p.shape if n in plan.trained else nothing, dtype=dtype)
        for n, p in zip(plan.program.params, params, strict=True)
    ]
    return [*of_inputs, *layout.allocate(x, dtype, steps=len(states)), *of_params]


# Gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.key, xs, states, params = inputs
    ctx.order = layout_of(xs[0], plan_of(ctx.key).dim).order
    steps = xs[0].shape[0]
    ctx.steps = steps if type(steps) is int else None  # a compiler's symbol is not compared
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*xs, *states, *params, output[-1])


def _gradient(ctx: Any, grads: Grads) -> tuple[Any, ...]:
    plan = plan_of(ctx.key).given(grads[:-1], ctx.steps)
    given, _, checkpoints, incoming = backward_inputs(ctx, plan, grads[:-1])
    computed = torch.ops.tracetorch.backward(plan.key, *given, checkpoints, incoming)
    return None, *split(plan, wanted_gradients(plan, computed))


def backward_inputs(
    ctx: Any, plan: Plan, grads: Grads
) -> tuple[Operands, Layout, Tensor, list[Tensor]]:
    """Return what a backward kernel reads, and its layout; zeros where no gradient came back."""
    *saved, checkpoints = saved_tensors(ctx)
    given = Operands(*split(plan, saved))
    x = given.inputs[0]
    layout = layout_of(x, plan.dim)
    if layout.order != ctx.order:
        # a hook on saved tensors gave x back in another order of memory than the checkpoints have
        x = x.permute(ctx.order).contiguous().permute([ctx.order.index(d) for d in range(x.ndim)])
        given = given._replace(inputs=[x, *given.inputs[1:]])
        layout = layout_of(x, plan.dim)
    return given, layout, checkpoints, incoming_gradients(x, grads, len(given.states))


def split(plan: Plan, tensors: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """Split what there is of inputs, states and parameters, in this order, into the three."""
    first = len(plan.program.inputs)
    second = first + len(plan.program.states)
    return list(tensors[:first]), list(tensors[first:second]), list(tensors[second:])


def incoming_gradients(x: Tensor, grads: Grads, states: int) -> list[Tensor]:
    """Return the gradients of all results, zeros for absent ones; refuse one without values."""
    found: list[Tensor] = []
    for index, grad in enumerate(grads):
        if grad is None:
            grad = torch.zeros_like(x[0])
            if index == 0 or index > states:  # outputs and trajectories have time
                grad = grad.expand(x.shape)
        elif not has_values(grad):  # of is_grads_batched, or jacobian(vectorize=True)
            raise RuntimeError(
                "a fused time loop takes one incoming gradient at a time. Run what needs a batch "
                "of them under tt.fuse.backend('eager')."
            )
        found.append(grad.resolve_neg())
    return found


def wanted_gradients(plan: Plan, computed: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of inputs, states, parameters; ``None`` for one not computed."""
    of_inputs, of_states, of_params = split(plan, computed)
    inputs = zip(plan.program.inputs, of_inputs, strict=True)
    states = zip(plan.program.states, of_states, strict=True)
    params = zip(plan.program.params, of_params, strict=True)
    return [
        *[grad if name in plan.differentiated else None for name, grad in inputs],
        *[grad if f"s_{name}" in plan.reached else None for name, grad in states],
        *[grad if name in plan.trained else None for name, grad in params],
    ]


def no_second_gradient(ctx: Any, grads: Grads) -> tuple[Any, ...]:
    """Raise, in the place of a gradient of the gradient."""
    raise RuntimeError(
        "a fused time loop has no second derivative. Run what needs one under "
        "tt.fuse.backend('eager')."
    )


torch.library.register_autograd(
    "tracetorch::forward", _gradient, setup_context=_setup, lib=_library
)
torch.library.register_autograd("tracetorch::backward", no_second_gradient, lib=_library)


# Kernels, and eager steps where one has failed


def run_forward(plan: Plan, layout: Layout, given: Operands) -> list[Tensor]:
    """Return outputs, final states, trajectories and checkpoints, where a kernel may be tried."""
    backend = backend_named(plan.backend)
    if not backend.tried or is_believed(backend, plan, layout, given, backward=False):
        return backend.forward(plan, layout, given)
    output, ends, records, checkpoints = allocate_results(plan, layout, given.inputs[0])
    results = [output, *ends, *records]
    with torch.no_grad():
        for result, value in zip(results, run_plan(plan, given), strict=True):
            result.copy_(value)
    return [*results, checkpoints]


def no_memory(plan: Plan, steps: int, error: torch.OutOfMemoryError) -> torch.OutOfMemoryError:
    """Return the error of a backward pass without memory, which says what needs less."""
    return torch.OutOfMemoryError(
        f"in the backward pass of {plan.program.layer}, of {steps} steps: "
        f"{error} tt.unroll(model, x, segment='auto') keeps less between forward and backward."
    )


def run_backward(
    plan: Plan, layout: Layout, given: Operands, checkpoints: Tensor, grads: list[Tensor]
) -> list[Tensor]:
    """Return the gradients of inputs, states, parameters; an empty tensor for one not needed."""
    backend = backend_named(plan.backend)
    try:
        if not backend.tried or is_believed(backend, plan, layout, given, backward=True):
            return backend.backward(plan, layout, given, checkpoints, grads)
        with global_modes_off():
            return plan_gradients(plan, given, grads)
    except torch.OutOfMemoryError as error:
        raise no_memory(plan, len(given.inputs[0]), error) from error
