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
    """A layer of it."""

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
        """One step."""
        if self.mem is None:
            self.mem = torch.zeros_like(x)
        spikes: Tensor
        spikes, self.mem = self.layer(x, self.mem)
        return spikes

    def reset(self) -> None:
        """Forget the state."""
        self.mem = None

    def parameters(self) -> Sequence[Tensor]:
        """What learns."""
        return list(self.layer.parameters())


def version() -> str:  # noqa: D103
    return f"{installed('snntorch')}, torch {torch.__version__}"


def refuses(case: Case) -> str | None:  # noqa: D103
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> TorchTask:  # noqa: D103
    return assemble(case, Cell, folded=False)
