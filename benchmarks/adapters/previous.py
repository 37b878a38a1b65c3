"""traceTorch 0.9.2, stepped: it had no other way."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.torch_task import TorchTask, assemble
from tracetorch import snn


class Cell:
    """A layer of it."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        """One step."""
        y: Tensor = self.layer(x)
        return y

    def reset(self) -> None:
        """Forget the state."""
        self.layer.zero_states()  # type: ignore[operator]

    def parameters(self) -> Sequence[Tensor]:
        """What learns."""
        return list(self.layer.parameters())


def version() -> str:  # noqa: D103
    return f"{installed('tracetorch')}, torch {torch.__version__}"


def refuses(case: Case) -> str | None:  # noqa: D103
    return None


def prepare(case: Case) -> TorchTask:  # noqa: D103
    def cell(num: int, decay: float, dim: int) -> Cell:
        if case.kind == "bsrlif":
            return Cell(snn.BSRLIF(num, dim=dim))
        return Cell(snn.LIF(num, beta=decay, dim=dim))

    return assemble(case, cell, folded=False)
