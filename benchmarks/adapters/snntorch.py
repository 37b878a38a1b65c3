"""snnTorch: ``Leaky``, its own defaults, stepped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from snntorch import Leaky
from torch import Tensor

from benchmarks.cases import THRESHOLD, Case
from benchmarks.torch_task import TorchTask, assemble


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


def version() -> str:
    return f"{installed('snntorch')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> TorchTask:
    return assemble(case, Cell, folded=False)
