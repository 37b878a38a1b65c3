"""Run the printed time loops of a linear recurrence on the CPU: memory and threads around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.ir.kernel import Role
from tracetorch.fuse.ir.plan import SCRATCH, RecurrentPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.cpu import Kernel, kernel_of, parameter_gradients
from tracetorch.fuse.runtime.layout import layout_of, strided
from tracetorch.fuse.runtime.threads import run_tasks

_ROWS = 8  # of a task: enough to read the matrix seldom, few enough to share out a small batch


class _Shape(NamedTuple):
    """Sizes of one call: ``per_task`` rows of neurons are walked through time together.

    ``every`` steps lie between two checkpoints; there is one of ``taps`` matrices for each delay.
    """

    steps: int
    every: int
    neurons: int
    rows: int
    per_task: int
    taps: int

    @property
    def lanes(self) -> int:
        return self.rows * self.neurons

    @property
    def tasks(self) -> int:
        return -(-self.rows // self.per_task)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Steps, steps of a segment, segments, matrices."""
        return self.steps, self.every, (self.steps - 1) // self.every + 1, self.taps


def _shape(plan: RecurrentPlan, like: Tensor, taps: int) -> _Shape:
    steps, neurons = len(like), like.shape[-1]
    rows = like[0].numel() // neurons
    per_task = min(_ROWS, rows)
    every = max(1, SCRATCH // (per_task * neurons * max(1, len(plan.recomputed))))
    return _Shape(steps, min(every, steps), neurons, rows, per_task, taps)


def _by_delay(weight: Tensor) -> Tensor:
    """Return the weight ``[N, N]`` or ``[N, N, taps]`` as ``[taps, N, N]``, the newest first."""
    weight = weight.detach()
    return weight.unsqueeze(0) if weight.ndim == 2 else weight.permute(2, 0, 1).flip(0)


def _panels(matrices: Tensor, panel: int) -> Tensor:
    """Copy square matrices into panels of as many columns, one after the other."""
    taps, size, _ = matrices.shape
    count = -(-size // panel)
    panels = torch.zeros(taps, count, size, panel, dtype=matrices.dtype, device="cpu")
    for i in range(count):
        part = matrices[..., i * panel : (i + 1) * panel]
        panels[:, i, :, : part.shape[-1]] = part
    return panels


def _run(kernel: Kernel, shape: _Shape, buffers: dict[Role, Sequence[Any]]) -> None:
    """Run a kernel on its buffers."""
    neurons, lanes = shape.neurons, shape.lanes
    geometry = (neurons, lanes, shape.rows, shape.per_task, neurons, neurons, 1)
    arguments = kernel.arguments(geometry, shape.sizes, buffers)
    # a product costs each lane about as much as half a line for each neuron
    work = shape.steps * lanes * (4 + kernel.lines + shape.taps * neurons // 2)
    scratch = kernel.scratch(shape.sizes, shape.per_task * neurons)
    run_tasks(kernel.tasks, arguments, shape.tasks, work=work, scratch=scratch)


# Forward


def forward(
    plan: RecurrentPlan,
    given: Tensor,
    first: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs, the last output and final states; and what the backward pass needs.

    That is the sum that the step is given, for every step, and the checkpoints of the states.
    """
    dtype, neurons, steps = plan.program.dtype, given.shape[-1], given.shape[0]
    shape = _shape(plan, given, len(first))
    layout = layout_of(given, -1)
    if not layout.in_order:  # rows of neurons must lie together
        given = given.contiguous()
        layout = layout_of(given, -1)
    output = large_empty(given.shape, dtype)
    # one step is enough where neither a later step nor the backward pass reads it
    is_sequence = plan.has_backward or shape.taps > 1
    x = large_empty(given.shape if is_sequence else given.shape[1:], dtype)
    last = torch.empty(given.shape[1:], dtype=dtype, device="cpu")
    ends = [torch.empty_like(last) for _ in states]
    kept = len(plan.recomputed) if plan.has_backward else 0
    size = (steps - 1) // shape.every * kept * shape.lanes
    checkpoints = torch.empty(size, dtype=dtype, device="cpu")
    if not kept:
        shape = shape._replace(every=steps)
    kernel = kernel_of(plan, False, recurrent_forward_kernel)
    shift = (given.new_zeros(neurons) if bias is None else bias).contiguous()
    matrix = _panels(_by_delay(weight).transpose(1, 2), kernel.printed.panel)
    params = [param.contiguous() for param in params]
    starts = [state.contiguous() for state in states]
    first = first.contiguous()
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [strided(given, layout)],
        Role.PARAMETER: params,
        Role.LITERALS: (kernel.literals,),
        Role.MATRIX: (matrix,),
        Role.BIAS: (shift,),
        Role.DRIVE: [(x, shape.lanes if is_sequence else 0, neurons)],
        Role.FIRST_OUTPUT: (first,),
        Role.OUTPUT: (output,),
        Role.LAST_OUTPUT: (last,),
        Role.START: starts,
        Role.END: ends,
        Role.CHECKPOINTS: (checkpoints,),
    }
    _run(kernel, shape, buffers)
    return [output, last, *ends], [x, checkpoints]


# Backward


def backward(
    plan: RecurrentPlan,
    x: Tensor,
    checkpoints: Tensor,
    first: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], dict[str, Tensor]]:
    """Return the gradients of input, first outputs, weight, states, and parameters by name.

    ``x`` and ``checkpoints`` are what forward returned, ``grads`` those of its results.
    """
    program, dtype, neurons = plan.program, plan.program.dtype, x.shape[-1]
    shape = _shape(plan, x, len(first))
    g_output, g_last, *g_ends = grads
    layout = layout_of(x, -1)
    d_x = large_empty(x.shape, dtype)
    output = large_empty(x.shape if plan.needs_weight_gradient else (0,), dtype)
    d_first = torch.empty(first.shape, dtype=dtype, device="cpu")
    d_starts = [torch.empty(x.shape[1:], dtype=dtype, device="cpu") for _ in states]
    # in float64: a parameter's gradient sums over time and batch
    sums = torch.zeros((shape.tasks, len(plan.trained), neurons), dtype=torch.float64, device="cpu")
    starts = dict(zip(program.states, states, strict=True))
    kernel = kernel_of(plan, True, recurrent_backward_kernel)
    matrix = _panels(_by_delay(weight), kernel.printed.panel)
    params = [param.contiguous() for param in params]
    before = [starts[name].contiguous() for name in plan.recomputed]
    after = [g_last.contiguous(), *(grad.contiguous() for grad in g_ends)]
    x = x.contiguous()
    buffers: dict[Role, Sequence[Any]] = {
        Role.INPUT: [(x, shape.lanes, neurons)],
        Role.PARAMETER: params,
        Role.LITERALS: (kernel.literals,),
        Role.MATRIX: (matrix,),
        Role.CHECKPOINTS: (checkpoints,),
        Role.START: before,
        Role.GRAD_OUTPUT: [strided(g_output, layout)],
        Role.GRAD_LAST_OUTPUT: after[:1],
        Role.GRAD_END: after[1:],
        Role.GRAD_INPUT: (d_x,),
        Role.OUTPUT: (output,) if plan.needs_weight_gradient else [],
        Role.GRAD_FIRST_OUTPUT: (d_first,),
        Role.GRAD_START: d_starts,
        Role.SUMS: (sums,),
    }
    _run(kernel, shape, buffers)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(plan, params, sums.numpy().sum(0))
    d_weight = _weight_gradient(d_x, output, first, weight) if plan.needs_weight_gradient else None
    return d_x, d_first, d_weight, d_starts, d_params


def _weight_gradient(d_x: Tensor, output: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, ``[N, N]`` or ``[N, N, taps]``: a product over all time.

    One for each tap.
    """
    neurons, taps = d_x.shape[-1], len(first)
    # in memory as the weight of a linear layer with delays, and that of one matrix as it is
    total = torch.empty(taps, neurons, neurons, dtype=d_x.dtype, device="cpu")
    total = total.permute(2, 1, 0) if taps > 1 else total.permute(1, 2, 0)

    def rows(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, neurons)

    for tap in range(taps):
        # of what is so many steps from the oldest one in the window of each step
        early = min(taps - tap, len(d_x))
        part = total[..., tap]
        torch.mm(rows(d_x[:early]).t(), rows(first[tap : tap + early]), out=part)
        part.addmm_(rows(d_x[early:]).t(), rows(output[: len(output) - early]))
    return total.squeeze(-1) if weight.ndim == 2 else total
