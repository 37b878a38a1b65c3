"""Run a plan: ``Backend``, by kernels, and a plain loop over time, their reference and fallback.

The loop is faster than calling the layer ``T`` times, because parameters are constrained and states
checked once for the whole sequence. A plan runs by it from the operands of its kernels too, and so
needs no layer, where a kernel has failed.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.core.torch_private import observed_by
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime.allocation import Layout
from tracetorch.fuse.step_results import check_step_results

# gradients of results, ``None`` for one that is absent
Grads: TypeAlias = "Sequence[Tensor | None]"


class Operands(NamedTuple):
    """The tensors of a sequence: inputs ``[T, ...]``, active states, tensors of the step kwargs."""

    inputs: Sequence[Tensor]
    states: Sequence[Tensor]
    params: Sequence[Tensor]


class Backend(abc.ABC):
    """A way to run whole sequences: a child is final, and there is one object of each."""

    name: ClassVar[str]  # by which it is requested
    tile: ClassVar[int]  # lanes whose recomputed states are held at a time in a backward pass
    tried: bool = False  # whether its kernels are tried on a sample before they are believed

    @abc.abstractmethod
    def uninstalled_reason(self) -> str | None:
        """Return why it cannot run on this machine, or ``None``."""

    @abc.abstractmethod
    def device_type(self) -> str:
        """Return the type of the devices whose tensors its kernels read."""

    def unavailable_reason(self, device: torch.device | None = None) -> str | None:
        """Return why it cannot run here, or ``None``."""
        if device is not None:
            wanted = self.device_type()
            if device.type != wanted:
                return f"its kernels are for {wanted}, the input is on {device.type}"
            if (reason := observed_by(modes=False)) is not None:
                return reason
        return self.uninstalled_reason()

    def unsupported_reason(self, program: Program, device: torch.device) -> str | None:
        """Return why it has no kernel for a program on a device, or ``None``."""
        return program.refused.get(device)

    def prepare(self, plan: Plan, device: torch.device) -> None:  # noqa: B027 (most have nothing)
        """Make what all runs of a plan share on a device."""

    @abc.abstractmethod
    def forward(self, plan: Plan, layout: Layout, given: Operands) -> list[Tensor]:
        """Return outputs, final states, trajectories, and checkpoints for the backward pass."""

    @abc.abstractmethod
    def backward(
        self, plan: Plan, layout: Layout, given: Operands, checkpoints: Tensor, grads: list[Tensor]
    ) -> list[Tensor]:
        """Return gradients of inputs, states, parameters; an empty tensor for one not needed."""

    @abc.abstractmethod
    def uniforms(self, position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what ``threefry.uniforms`` does, by a kernel."""


# The plain loop


def run_eagerly(
    cell: Cell | StepDefinition,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    record: Sequence[str],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return outputs, final states and recorded trajectories in the arithmetic's dtype."""
    outputs: list[Tensor] = []
    trajectories: dict[str, list[Tensor]] = {name: [] for name in record}
    active: dict[str, Tensor] = {}
    # unbind, not x[t]: the backward pass of an index is as long as the whole sequence
    for now in zip(*[x.unbind(0) for x in inputs], strict=True):
        output, active = check_step_results(cell, now, cell.step(*now, *states, **kwargs))
        states = [active.get(name) for name in cell.states]
        outputs.append(output)
        for name, trajectory in trajectories.items():
            trajectory.append(active[name])
    records = [torch.stack(trajectory) for trajectory in trajectories.values()]
    return torch.stack(outputs), list(active.values()), records


def run_plan(plan: Plan, given: Operands) -> list[Tensor]:
    """Return what a plan's forward kernel computes: outputs, final states and trajectories."""
    program, ndim = plan.program, given.inputs[0].ndim - 1
    shape = [1] * ndim
    shape[plan.dim] = -1
    kwargs = dict(program.options)
    for name, value in zip(program.params, given.params, strict=True):
        kwargs[name] = value.reshape(shape if value.numel() > 1 else ())
    active = dict(zip(program.states, given.states, strict=True))
    states = [active.get(name) for name in program.definition.states]
    output, ends, records = run_eagerly(
        program.definition, given.inputs, states, kwargs, plan.record
    )
    return [output, *ends, *records]


def plan_gradients(plan: Plan, given: Operands, grads: Grads) -> list[Tensor]:
    """Return what a plan's backward kernel computes; an empty tensor for one not needed."""
    program = plan.program
    states = [name for name in program.states if f"s_{name}" in plan.reached]
    wanted = {*plan.differentiated, *plan.trained, *states}
    leaves = [
        [each.detach().requires_grad_(name in wanted) for name, each in zip(*of, strict=True)]
        for of in zip((program.inputs, program.states, program.params), given, strict=True)
    ]
    every = [leaf for group in leaves for leaf in group]
    with torch.enable_grad():
        results = zip(run_plan(plan, Operands(*leaves)), grads, strict=True)
        pairs = [(end, grad) for end, grad in results if grad is not None and end.requires_grad]
        learned = [leaf for leaf in every if leaf.requires_grad]
        found: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in learned]
        if pairs and learned:
            ends, cotangents = zip(*pairs, strict=True)
            unused: Any = {"allow_unused": True, "materialize_grads": True}
            found = torch.autograd.grad(ends, learned, cotangents, **unused)
    gradients = iter(found)
    return [next(gradients) if leaf.requires_grad else leaf.new_zeros(0) for leaf in every]
