"""Register the fused loops as PyTorch operators: ``torch.ops.tracetorch.forward``, ``.backward``.

The operators take any plan by its key: opaque, with known shapes and a known gradient; so
``torch.compile`` and dispatch modes treat a fused layer as they treat a convolution. Plain tensors
need none of that, and dispatching lists of tensors costs more than a small layer does: :func:`run`
avoids it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tracetorch.cell import ConstraintGradient
from tracetorch.core.torch_private import global_modes_off, has_values, observed_by, saved_tensors
from tracetorch.fuse.dispatch.backends import backend_named, report_fallback
from tracetorch.fuse.dispatch.plans import plan_of, register
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime import eager, first_run
from tracetorch.fuse.runtime.backend import Grads, Operands
from tracetorch.fuse.runtime.layout import Layout, allocate_results, layout_of

T = TypeVar("T")

_library = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "forward(str key, Tensor[] inputs, Tensor[] states, Tensor[] params) -> Tensor[]",
    "backward(str key, Tensor[] inputs, Tensor[] states, Tensor[] params, Tensor checkpoints,"
    " Tensor[] grads) -> Tensor[]",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


# Forward


@torch.library.impl(_library, "forward", "CompositeExplicitAutograd")
def _forward(key: str, *operands: list[Tensor]) -> list[Tensor]:
    plan, given = plan_of(key), Operands(*operands)
    return _run_forward(plan, layout_of(given.inputs[0], plan.dim), given)


@torch.library.register_fake("tracetorch::forward", lib=_library)  # type: ignore[untyped-decorator]
def _forward_fake(key: str, *operands: list[Tensor]) -> list[Tensor]:
    plan, x = plan_of(key), operands[0][0]
    output, ends, records, checkpoints = allocate_results(plan, layout_of(x, plan.dim), x)
    return [output, *ends, *records, checkpoints]


# Backward


@torch.library.impl(_library, "backward", "CompositeExplicitAutograd")
def _backward(key: str, *operands: Any) -> list[Tensor]:
    *values, checkpoints, grads = operands
    plan, given = plan_of(key), Operands(*values)
    results = _run_backward(plan, layout_of(given.inputs[0], plan.dim), given, checkpoints, grads)
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
        torch.empty(p.shape if n in plan.trained else nothing, dtype=dtype, device=x.device)
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
    given, _, checkpoints, incoming = _backward_inputs(ctx, plan, grads[:-1])
    computed = torch.ops.tracetorch.backward(plan.key, *given, checkpoints, incoming)
    return None, *_split(plan, _wanted_gradients(plan, computed))


def _backward_inputs(
    ctx: Any, plan: Plan, grads: Grads
) -> tuple[Operands, Layout, Tensor, list[Tensor]]:
    """Return what a backward kernel reads, and its layout; zeros where no gradient came back."""
    *saved, checkpoints = saved_tensors(ctx)
    given = Operands(*_split(plan, saved))
    x = given.inputs[0]
    layout = layout_of(x, plan.dim)
    if layout.order != ctx.order:
        # a hook on saved tensors gave x back in another order of memory than the checkpoints have
        x = x.permute(ctx.order).contiguous().permute([ctx.order.index(d) for d in range(x.ndim)])
        given = given._replace(inputs=[x, *given.inputs[1:]])
        layout = layout_of(x, plan.dim)
    return given, layout, checkpoints, incoming_gradients(x, grads, len(given.states))


def _split(plan: Plan, tensors: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
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
        found.append(grad)
    return found


def _wanted_gradients(plan: Plan, computed: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of inputs, states, parameters; ``None`` for one not computed."""
    of_inputs, of_states, of_params = _split(plan, computed)
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

_NO_SECOND = "compiled steps have no second derivative, which create_graph=True needs"


def is_believed(
    plan: Plan, device: torch.device, kernel: Hashable, failure: Callable[[], str | None]
) -> bool:
    """Whether a kernel of a plan is to run; ``failure`` tries it the first time on a device."""
    if device in plan.program.refused:
        return False
    key = kernel, device
    if key in plan.tried or first_run.is_capturing(device):
        return True
    reason = failure()
    if reason is None:
        plan.tried.add(key)
        return True
    plan.program.refused[device] = reason
    report_fallback(plan.program.layer, plan.backend, reason)
    return False


def _is_believed(plan: Plan, layout: Layout, given: Operands, *, backward: bool) -> bool:
    """Whether a kernel is to run; one that has nothing to do cannot be tried."""
    backend, device = backend_named(plan.backend), given.inputs[0].device
    if not layout.lanes and device not in plan.program.refused:
        return True
    fail = partial(first_run.failure_of, backend, plan, given, backward=backward)
    return is_believed(plan, device, backward, fail)


def _run_forward(plan: Plan, layout: Layout, given: Operands) -> list[Tensor]:
    """Return outputs, final states, trajectories and checkpoints."""
    backend = backend_named(plan.backend)
    if not backend.tried or _is_believed(plan, layout, given, backward=False):
        return backend.forward(plan, layout, given)
    output, ends, records, checkpoints = allocate_results(plan, layout, given.inputs[0])
    results = [output, *ends, *records]
    with torch.no_grad():
        for result, value in zip(results, eager.run_plan(plan, given), strict=True):
            result.copy_(value)
    return [*results, checkpoints]


def no_memory(plan: Plan, steps: int, error: torch.OutOfMemoryError) -> torch.OutOfMemoryError:
    """Return the error of a backward pass without memory, which says what needs less."""
    return torch.OutOfMemoryError(
        f"in the backward pass of {plan.program.layer}, of {steps} steps: "
        f"{error} tt.unroll(model, x, segment='auto') keeps less between forward and backward."
    )


def _run_backward(
    plan: Plan, layout: Layout, given: Operands, checkpoints: Tensor, grads: list[Tensor]
) -> list[Tensor]:
    """Return the gradients of inputs, states, parameters; an empty tensor for one not needed."""
    backend = backend_named(plan.backend)
    try:
        if not backend.tried or _is_believed(plan, layout, given, backward=True):
            return backend.backward(plan, layout, given, checkpoints, grads)
        with global_modes_off():
            return eager.plan_gradients(plan, given, grads)
    except torch.OutOfMemoryError as error:
        raise no_memory(plan, len(given.inputs[0]), error) from error


# On plain tensors


class Constrained(NamedTuple):
    """The constraint of a parameter, and its gradient."""

    constraint: Callable[[Tensor], Tensor]
    gradient: ConstraintGradient


def _same(value: Tensor) -> Tensor:
    return value


def _same_gradient(grad: Tensor, raw: Tensor, value: Tensor) -> Tensor:
    return grad


_SAME = ConstraintGradient(_same_gradient, reads_raw=False)


def run(plan: Plan, given: Operands) -> Sequence[Tensor]:
    """Return outputs, final states and trajectories, part of the graph where the plan has one."""
    # wrappers, dispatch modes and lazily negated tensors must see an operator
    if observed_by((*given.inputs, *given.states, *given.params)) is not None:
        results = torch.ops.tracetorch.forward(register(plan), *given)[:-1]
        return [
            end if smooth else end.detach()
            for end, smooth in zip(results, plan.smooth_results, strict=True)
        ]
    constrained = tuple([Constrained(_same, _SAME)] * len(given.params))
    return run_raw(plan, layout_of(given.inputs[0], plan.dim), constrained, given)


def run_raw(
    plan: Plan, layout: Layout, constrained: tuple[Constrained, ...], given: Operands
) -> Sequence[Tensor]:
    """Return what :func:`run` does, from plain tensors and what parameters are constrained from."""
    if plan.has_backward:
        tensors = (*given.inputs, *given.states, *given.params)
        return _FusedLayer.apply(plan, layout, constrained, *tensors)  # type: ignore[no-untyped-call, no-any-return]
    values = Operands(given.inputs, given.states, _constrain(plan, constrained, given.params))
    return _run_forward(plan, layout, values)[:-1]


def _constrain(
    plan: Plan, constrained: Sequence[Constrained], raws: Sequence[Tensor]
) -> list[Tensor]:
    dtype = plan.program.dtype
    values: list[Tensor] = []
    for each, raw in zip(constrained, raws, strict=True):
        values.append(each.constraint(raw if raw.dtype is dtype else raw.to(dtype)))
    return values


def _read_raws(ctx: Any, saved: Grads) -> list[Tensor]:
    """Return the raw parameters of a node: those that were saved, and those that were kept."""
    return [raw if s is None else s for s, raw in zip(saved, ctx.raws, strict=True)]


class _FusedLayer(torch.autograd.Function):
    """The loop and the constraints of its parameters: one node of the graph for all of time."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, layout: Layout, constrained: tuple[Constrained, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        first = len(plan.program.inputs)
        second = first + len(plan.program.states)
        inputs, states, raws = tensors[:first], tensors[first:second], tensors[second:]
        values = _constrain(plan, constrained, raws)
        given = Operands(inputs, states, values)
        *results, checkpoints = _run_forward(plan, layout, given)
        ctx.plan, ctx.order, ctx.constrained = plan, layout.order, constrained
        ctx.steps = len(inputs[0])
        ctx.set_materialize_grads(False)
        # only what is read is saved: a parameter that is not may change before the backward pass
        read: list[Tensor | None] = []
        ctx.raws = []
        for each, raw in zip(constrained, raws, strict=True):
            reads = each.gradient.reads_raw
            read.append(raw if reads else None)
            ctx.raws.append(None if reads else raw)
        ctx.save_for_backward(*inputs, *states, *values, *read, checkpoints)
        if not all(plan.smooth_results):
            ends = zip(results, plan.smooth_results, strict=True)
            ctx.mark_non_differentiable(*(end for end, smooth in ends if not smooth))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, constrained = ctx.plan, ctx.constrained
        count = len(plan.program.params)
        values: Sequence[Tensor]
        if torch.is_grad_enabled():  # create_graph=True
            *saved, _ = saved_tensors(ctx)
            inputs, states, saved = _split(plan, saved)
            raws = _read_raws(ctx, saved[count:])
            values = _constrain(plan, constrained, raws)
            if not all(map(torch.equal, values, saved[:count])):
                raise RuntimeError(
                    "a parameter of a neuron layer was changed in place between the forward and "
                    "the backward pass, which is to be differentiated itself."
                )
            given = Operands(inputs, states, values)
            report_fallback(plan.program.layer, plan.backend, _NO_SECOND)
            computed = eager.gradients(plan, given, grads, create_graph=True)
        else:
            resolved = [grad if grad is None else grad.resolve_neg() for grad in grads]
            plan = plan.given(grads, ctx.steps)
            given, layout, checkpoints, incoming = _backward_inputs(ctx, plan, resolved)
            values, raws = given.params[:count], _read_raws(ctx, given.params[count:])
            given = given._replace(params=values)
            gradients = _run_backward(plan, layout, given, checkpoints, incoming)
            computed = _wanted_gradients(plan, gradients)
        of_inputs, of_states, of_values = _split(plan, computed)
        of_raws: list[Tensor | None] = []
        for grad, raw, value, each in zip(of_values, raws, values, constrained, strict=True):
            if grad is not None:
                grad = grad.reshape(value.shape)
                if raw.dtype is value.dtype:  # nearly always
                    grad = each.gradient.function(grad, raw, value)
                else:
                    grad = each.gradient.function(grad, raw.to(value.dtype), value).to(raw.dtype)
            of_raws.append(grad)
        return None, None, None, *of_inputs, *of_states, *of_raws
