"""snnTorch: ``Leaky`` and ``RLeaky``, their own defaults, stepped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from snntorch import Leaky, RLeaky
from torch import Tensor

from benchmarks.cases import THRESHOLD, Case
from benchmarks.task import Task
from benchmarks.torch_task import assemble


class Cell:
    """Spiking layer of snnTorch."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        shape = (num, *[1] * (-dim - 1))
        self.layer = Leaky(
            torch.full(shape, decay),
            torch.full(shape, THRESHOLD),
            learn_beta=True,
            learn_threshold=True,
        )
        self.mem: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run one step."""
        if self.mem is None:
            self.mem = torch.zeros_like(x)
        spikes: Tensor
        spikes, self.mem = self.layer(x, self.mem)
        return spikes

    def reset(self) -> None:
        """Reset the state."""
        self.mem = None

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return list(self.layer.parameters())


class RecurrentCell(Cell):
    """Spiking layer of snnTorch whose output comes back through a linear layer."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        self.recurrent = RLeaky(
            torch.full((num,), decay),
            linear_features=num,
            threshold=torch.full((num,), THRESHOLD),
            learn_beta=True,
            learn_threshold=True,
        )
        self.state: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run one step."""
        if self.state is None:
            self.state = (torch.zeros_like(x), torch.zeros_like(x))
        self.state = self.recurrent(x, *self.state)
        return self.state[0]

    def reset(self) -> None:
        """Reset the state."""
        self.state = None

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return list(self.recurrent.parameters())


def version() -> str:
    return f"{installed('snntorch')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> Task:
    cell = RecurrentCell if case.kind.endswith("recurrent") else Cell
    return assemble(case, cell, folded=False)
