"""Run the printed time loops of a linear recurrence: the memory around them, the CPU's threads."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.ir.kernel import Role
from tracetorch.fuse.ir.plan import SCRATCH, RecurrentPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.cpu import kernel_of, parameter_gradients
from tracetorch.fuse.runtime.layout import layout_of, strided
from tracetorch.fuse.runtime.threads import run_tasks

_ROWS = 8  # of a task: enough to read the matrix seldom, few enough to share out a small batch


class Shape(NamedTuple):
    """Sizes of one call: rows of neurons over time; ``every`` steps between checkpoints."""

    steps: int
    every: int
    neurons: int
    rows: int
    taps: int

    @property
    def lanes(self) -> int:
        """Neurons of all rows."""
        return self.rows * self.neurons

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Steps, steps of a segment, segments, matrices."""
        return self.steps, self.every, (self.steps - 1) // self.every + 1, self.taps


Buffers = dict[Role, Sequence[Any]]


class Gradients(NamedTuple):
    """Those of input, first outputs, weight if it learns, states, and parameters by name."""

    x: Tensor
    first: Tensor
    weight: Tensor | None
    states: Sequence[Tensor]
    params: dict[str, Tensor]


class Loop(abc.ABC):
    """The printed loops of a plan in the language of a device: a child is final."""

    def __init__(self, plan: RecurrentPlan) -> None:
        self.plan = plan

    def shape(self, like: Tensor, taps: int) -> Shape:
        """Return the sizes of a call with such an input."""
        steps, neurons = len(like), like.shape[-1]
        rows = like[0].numel() // neurons
        return Shape(steps, min(self.interval(rows, neurons), steps), neurons, rows, taps)

    @staticmethod
    def unsupported_reason(neurons: int) -> str | None:
        """Return why so many neurons run step by step, or ``None``."""
        return None

    def variant(self, like: Tensor, taps: int) -> Hashable:
        """Return what its kernels are compiled for, of a call with such an input."""
        return taps > 1

    @abc.abstractmethod
    def interval(self, rows: int, neurons: int) -> int:
        """Return the steps from one checkpoint to the next."""

    @abc.abstractmethod
    def sums(self, shape: Shape, like: Tensor) -> Tensor:
        """Return zeros for the sums of gradients: float64, which sums over time and batch need."""

    @abc.abstractmethod
    def totals(self, sums: Tensor) -> Any:
        """Return the sums ``[trained, neurons]`` over what the tasks have added up."""

    @abc.abstractmethod
    def run(self, backward: bool, shape: Shape, matrices: Tensor, buffers: Buffers) -> None:
        """Run one of the two loops with matrices ``[taps, N, N]`` on its other buffers."""


class CpuLoop(Loop):
    """Those in LLVM IR, a task for eight rows."""

    def interval(self, rows: int, neurons: int) -> int:
        """Return as many steps as a core's cache holds the states of."""
        kept = max(1, len(self.plan.recomputed))
        return max(1, SCRATCH // (min(_ROWS, rows) * neurons * kept))

    def sums(self, shape: Shape, like: Tensor) -> Tensor:
        """Return those of each task."""
        size = (-(-shape.rows // _ROWS), len(self.plan.trained), shape.neurons)
        return torch.zeros(size, dtype=torch.float64, device="cpu")

    def totals(self, sums: Tensor) -> Any:
        """Return the sums over tasks."""
        return sums.numpy().sum(0)

    def run(self, backward: bool, shape: Shape, matrices: Tensor, buffers: Buffers) -> None:
        """Run a loop on threads."""
        build = recurrent_backward_kernel if backward else recurrent_forward_kernel
        kernel, neurons, lanes = kernel_of(self.plan, backward, build), shape.neurons, shape.lanes
        per_task = min(_ROWS, shape.rows)
        buffers |= {
            Role.LITERALS: (kernel.literals,),
            Role.MATRIX: (_panels(matrices, kernel.printed.panel),),
        }
        geometry = (neurons, lanes, shape.rows, per_task, neurons, neurons, 1)
        arguments = kernel.arguments(geometry, shape.sizes, buffers)
        # a product costs each lane about as much as half a line for each neuron
        work = shape.steps * lanes * (4 + kernel.lines + shape.taps * neurons // 2)
        scratch = kernel.scratch(shape.sizes, per_task * neurons)
        tasks = -(-shape.rows // per_task)
        run_tasks(kernel.tasks, arguments, tasks, work=work, scratch=scratch)


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


def _new(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return memory for a sequence, which may be large."""
    is_cpu = like.device.type == "cpu"
    return large_empty(shape, like.dtype) if is_cpu else like.new_empty(shape)


# Forward


def forward(
    loop: Loop,
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
    plan, neurons, steps = loop.plan, given.shape[-1], given.shape[0]
    shape = loop.shape(given, len(first))
    layout = layout_of(given, -1)
    if not layout.in_order:  # rows of neurons must lie together
        given = given.contiguous()
        layout = layout_of(given, -1)
    output = _new(given.shape, given)
    # one step is enough where neither a later step nor the backward pass reads it
    is_sequence = plan.has_backward or shape.taps > 1
    x = _new(given.shape if is_sequence else given.shape[1:], given)
    last = given.new_empty(given.shape[1:])
    ends = [torch.empty_like(last) for _ in states]
    kept = len(plan.recomputed) if plan.has_backward else 0
    checkpoints = given.new_empty((steps - 1) // shape.every * kept * shape.lanes)
    if not kept:
        shape = shape._replace(every=steps)
    shift = given.new_zeros(neurons) if bias is None else bias
    buffers: Buffers = {
        Role.INPUT: [strided(given, layout)],
        Role.PARAMETER: [param.contiguous() for param in params],
        Role.BIAS: (shift.contiguous(),),
        Role.DRIVE: [(x, shape.lanes if is_sequence else 0, neurons)],
        Role.FIRST_OUTPUT: (first.contiguous(),),
        Role.OUTPUT: (output,),
        Role.LAST_OUTPUT: (last,),
        Role.START: [state.contiguous() for state in states],
        Role.END: ends,
        Role.CHECKPOINTS: (checkpoints,),
    }
    loop.run(False, shape, _by_delay(weight).transpose(1, 2), buffers)
    return [output, last, *ends], [x, checkpoints]


# Backward


def backward(
    loop: Loop,
    x: Tensor,
    checkpoints: Tensor,
    first: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> Gradients:
    """Return the gradients.

    ``x`` and ``checkpoints`` are what forward returned, ``grads`` those of its results.
    """
    plan, neurons = loop.plan, x.shape[-1]
    shape = loop.shape(x, len(first))
    g_output, g_last, *g_ends = grads
    layout = layout_of(x, -1)
    d_x = _new(x.shape, x)
    output = _new(x.shape if plan.needs_weight_gradient else (0,), x)
    d_first = x.new_empty(first.shape)
    d_starts = [x.new_empty(x.shape[1:]) for _ in states]
    sums = loop.sums(shape, x)
    starts = dict(zip(plan.program.states, states, strict=True))
    params = [param.contiguous() for param in params]
    after = [g_last.contiguous(), *(grad.contiguous() for grad in g_ends)]
    x = x.contiguous()
    buffers: Buffers = {
        Role.INPUT: [(x, shape.lanes, neurons)],
        Role.PARAMETER: params,
        Role.CHECKPOINTS: (checkpoints,),
        Role.START: [starts[name].contiguous() for name in plan.recomputed],
        Role.GRAD_OUTPUT: [strided(g_output, layout)],
        Role.GRAD_LAST_OUTPUT: after[:1],
        Role.GRAD_END: after[1:],
        Role.GRAD_INPUT: (d_x,),
        Role.OUTPUT: (output,) if plan.needs_weight_gradient else [],
        Role.GRAD_FIRST_OUTPUT: (d_first,),
        Role.GRAD_START: d_starts,
        Role.SUMS: (sums,),
    }
    loop.run(True, shape, _by_delay(weight), buffers)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(plan, params, loop.totals(sums))
    d_weight = _weight_gradient(d_x, output, first, weight) if plan.needs_weight_gradient else None
    return Gradients(d_x, d_first, d_weight, d_starts, d_params)


def _weight_gradient(d_x: Tensor, output: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, ``[N, N]`` or ``[N, N, taps]``: a product for each tap."""
    neurons, taps = d_x.shape[-1], len(first)
    # in memory as the weight of a linear layer with delays, and that of one matrix as it is
    total = d_x.new_empty(taps, neurons, neurons)
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
