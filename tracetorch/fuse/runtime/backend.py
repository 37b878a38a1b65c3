"""``Backend``: run the kernels of a plan, and say where that is not possible."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.torch_private import observed_by
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime.allocation import Layout

# gradients of results, ``None`` for one that is absent
Grads: TypeAlias = "Sequence[Tensor | None]"


class Operands(NamedTuple):
    """The tensors of a sequence: inputs ``[T, ...]``, active states, tensors of the step kwargs."""

    inputs: Sequence[Tensor]
    states: Sequence[Tensor]
    params: Sequence[Tensor]


class Backend(abc.ABC):
    """A way to run whole sequences: a child is final, and there is one object of each."""

    name: ClassVar[str]
    """By which it is requested."""
    tile: ClassVar[int]
    """Lanes whose recomputed states are held at a time in a backward pass."""
    tried: bool = False
    """Whether its kernels are tried on a sample before they are believed."""

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
        """Return the gradients of inputs, states, parameters; an empty tensor for one not needed.

        ``grads`` are those of the results.
        """

    @abc.abstractmethod
    def uniforms(self, position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what ``threefry.uniforms`` does, by a kernel."""
