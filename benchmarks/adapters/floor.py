"""Lower bound: the cost of memory traffic, or of the matrix product before the neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.torch_task import TorchTask, inputs, linear


class Copy:
    """Copy into memory that is already there, twice for a forward and a backward pass."""

    def __init__(self, case: Case) -> None:
        self.x = inputs(case)
        self.out = torch.empty_like(self.x)
        self.times = 2 if case.way == "train" else 1

    def run(self) -> None:
        """Copy the input."""
        for _ in range(self.times):
            self.out.copy_(self.x)

    def density(self) -> float:
        """Return NaN: nothing spikes."""
        return float("nan")


class Product(TorchTask):
    """Linear layer alone, on time and batch at once."""

    def __init__(self, case: Case) -> None:
        layer = linear(case.N)

        def run(x: Tensor) -> Tensor:
            y: Tensor = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return y

        super().__init__(case, inputs(case), run, lambda: None, list(layer.parameters()))

    def density(self) -> float:
        """Return NaN: nothing spikes."""
        return float("nan")


def version() -> str:
    return f"torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    if case.kind in ("lif", "growth", "bsrlif", "linear"):
        return None
    return "it is no bound for this case"


def prepare(case: Case) -> Copy | Product:
    return Product(case) if case.kind == "linear" else Copy(case)
