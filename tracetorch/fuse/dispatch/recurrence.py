"""Run a layer's ``step`` over a whole sequence with its output fed back through a matrix.

Recurrence. ``snn.Recurrent`` with an exact ``nn.Linear`` or ``snn.DelayedLinear`` is one loop over
time too (``tracetorch/fuse/ir/schedule.py``), on a GPU for up to 256 neurons. Neurons of a sample
are coupled, samples are not: a task is eight samples, on a GPU up to sixteen. The output of each
step is multiplied by one matrix for each delay, on the CPU with its events, or densely where more
than 0.4 of four rows are not zero; backward does the same with the cotangents. What is kept for
backward is the sum that the step was given, in place of the input: states and outputs are computed
again from it, step by step without a product, and the weight's gradient is one product over all of
time for each matrix. Hooks, overrides, parametrizations, autocast, half precision, transforms,
``torch.compile``, a record of the neuron inside, or on the CPU a weight that is not finite (a
skipped ``0 * inf`` would hide the NaN): then the modules are called step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.core.torch_private import global_modes_off, observed_by, saved_tensors
from tracetorch.fuse.dispatch.backends import backend_named, log_fallback
from tracetorch.fuse.dispatch.operators import (
    incoming_gradients,
    is_believed,
    no_memory,
    no_second_gradient,
)
from tracetorch.fuse.dispatch.plans import recurrent_plan_for
from tracetorch.fuse.dispatch.recurrence_trial import Tensors, failure_of, gradients
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.runtime import recurrence
from tracetorch.fuse.runtime.backend import Grads
from tracetorch.fuse.runtime.recurrence import Gradients, Loop


def run_recurrence(
    cell: Cell,
    x: Tensor,
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """Return outputs, last output and final states of a loop with matrices, ``None``: by step.

    ::

        output[t] = step(x[t] + bias + sum_j  weight[..., j] @ output[t - taps + j])

    The inputs ``x`` are ``[T, ...]``, neurons last, in the dtype of the arithmetic; ``first`` are
    the outputs before them ``[taps, ...]``; ``weight`` is ``[N, N, taps]``, or ``[N, N]`` for one.
    """
    active = [state for state in states if state is not None]
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    connection = [weight] if bias is None else [weight, bias]
    if observed_by((x, first, *connection, *active, *tensors)) is not None:
        return None
    plan = recurrent_plan_for(cell, x, active, kwargs, first, weight, bias)
    if plan is None:
        return None
    kind = _loop_of(plan)
    reason = kind.unsupported_reason(x.shape[-1])
    if reason is not None:
        log_fallback(f"Recurrent({cell.name}, ...)", reason)
        return None
    # a product by events skips zeros, which an infinite weight would make NaN
    if kind is recurrence.CpuLoop and not weight.detach().sum().isfinite():
        return None
    given = Tensors(x, first, weight, bias, active, plan.program.tensors(kwargs))
    if backend_named(plan.backend).tried and not _is_believed(plan, given):
        return None
    output, last, *ends = _run(plan, given)
    return output, last, ends


def _run(plan: RecurrentPlan, given: Tensors) -> Sequence[Tensor]:
    """Return outputs, the last output and final states, part of the graph where there is one."""
    if plan.has_backward:
        tensors = (*given[:4], *given.states, *given.params)
        return _Recurrence.apply(plan, *tensors)  # type: ignore[no-untyped-call, no-any-return]
    results, _ = recurrence.forward(_loop_of(plan)(plan), *given)
    return results


def _is_believed(plan: RecurrentPlan, given: Tensors, grads: Grads | None = None) -> bool:
    """Whether a kernel is to run, with ``grads`` the backward one; tried the first time."""
    kind = _loop_of(plan)
    kernel = grads is not None, kind(plan).variant(given.x, len(given.first))
    fail = partial(failure_of, plan, kind, given, grads)
    return is_believed(plan, given.x.device, kernel, fail)


def _gradients(plan: RecurrentPlan, given: Tensors, checkpoints: Tensor, grads: Grads) -> Gradients:
    """Return the gradients, by a kernel or by eager steps."""
    x, count = given.x, len(given.states)
    try:
        if backend_named(plan.backend).tried and not _is_believed(plan, given, grads):
            with global_modes_off():
                return gradients(plan, given, grads)
        rest = given.first, given.weight, given.states, given.params
        incoming = incoming_gradients(x, grads, 1 + count)
        return recurrence.backward(_loop_of(plan)(plan), x, checkpoints, *rest, incoming)
    except torch.OutOfMemoryError as error:
        raise no_memory(plan, len(x), error) from error


def _loop_of(plan: RecurrentPlan) -> type[Loop]:
    """Return the loops of the backend of a plan, imported at the first call."""
    if plan.backend == "cpu":
        return recurrence.CpuLoop
    from tracetorch.fuse.runtime.gpu_recurrence import TritonLoop

    return TritonLoop


class _Recurrence(torch.autograd.Function):
    """The loop as one node of the graph, for all of time."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: RecurrentPlan,
        x: Tensor,
        first: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        loop = _loop_of(plan)(plan)
        results, kept = recurrence.forward(loop, x, first, weight, bias, states, params)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, first, weight, *tensors)
        smooth = zip(results, plan.smooth_results, strict=True)
        ctx.mark_non_differentiable(*(end for end, has_gradient in smooth if not has_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        if torch.is_grad_enabled():
            no_second_gradient(ctx, ())
        x, checkpoints, first, weight, *tensors = saved_tensors(ctx)
        count = len(plan.program.states)
        states, params = tensors[:count], tensors[count:]
        plan = plan.given(grads, len(x))
        resolved = [grad if grad is None else grad.resolve_neg() for grad in grads]
        given = Tensors(x, first, weight, None, states, params)
        d_x, d_first, d_weight, d_states, d_params = _gradients(plan, given, checkpoints, resolved)
        _, wants_x, wants_first, _, wants_bias, *_ = ctx.needs_input_grad
        # nothing of the connection is reached where no input of a step is
        reached = "x" in plan.reached
        named = zip(plan.program.states, d_states, strict=True)
        return (
            None,
            d_x if wants_x and reached else None,
            d_first if wants_first and reached else None,
            d_weight if reached else None,
            d_x.reshape(-1, x.shape[-1]).sum(0) if wants_bias and reached else None,
            *[grad if f"s_{name}" in plan.reached else None for name, grad in named],
            *map(d_params.get, plan.program.params),
        )
