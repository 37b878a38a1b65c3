"""traceTorch 0.9.2, called step by step, the only way it has."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.task import Task
from benchmarks.torch_task import assemble
from tracetorch import snn


class Cell:
    """Spiking layer of traceTorch 0.9.2."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        """Run one step."""
        y: Tensor = self.layer(x)
        return y

    def reset(self) -> None:
        """Reset the state."""
        self.layer.zero_states()  # type: ignore[operator]

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return list(self.layer.parameters())


def version() -> str:
    return f"{installed('tracetorch')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    if case.kind == "accuracy":
        return "it is measured on single steps of training"
    return "it has no such neuron" if case.kind == "recurrent" else None


def prepare(case: Case) -> Task:
    def cell(num: int, decay: float, dim: int) -> Cell:
        if case.kind == "bsrlif":
            return Cell(snn.BSRLIF(num, dim=dim))
        return Cell(snn.LIF(num, beta=decay, dim=dim))

    return assemble(case, cell, folded=False)
