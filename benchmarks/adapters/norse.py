"""Norse: ``LIFBoxCell`` with learnable parameters, stepped.

Its step is ``v + k * (x - v)``; the input is multiplied by ``1 / k`` to be the same neuron.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from benchmarks.cases import CONV_DECAY, DECAY, THRESHOLD, Case
from benchmarks.torch_task import Stepped, TorchTask, assemble

DT = 0.001


class Cell:
    """Spiking layer of Norse."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        shape = (num, *[1] * (-dim - 1))
        self.learnable = [
            nn.Parameter(torch.full(shape, (1 - decay) / DT)),
            nn.Parameter(torch.full(shape, THRESHOLD)),
        ]
        self.cell = LIFBoxCell(
            LIFBoxParameters(
                tau_mem_inv=self.learnable[0],
                v_th=self.learnable[1],
                reset_method=reset_subtract,
            ),
            dt=DT,
        )
        self.state: LIFBoxFeedForwardState | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run one step."""
        if self.state is None:
            self.state = LIFBoxFeedForwardState(torch.zeros_like(x))
        spikes: Tensor
        spikes, self.state = self.cell(x, self.state)
        return spikes

    def reset(self) -> None:
        """Reset the state."""
        self.state = None

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return self.learnable


def version() -> str:
    return f"{installed('norse')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> TorchTask:
    task = assemble(case, Cell, folded=False)
    gain = 1 / (1 - (CONV_DECAY if case.kind == "conv" else DECAY))
    with torch.no_grad():
        if isinstance(task.model, Stepped) and case.kind in ("linear", "conv"):
            # folded into the weights before each neuron, so that a run has no extra product
            for before, after in itertools.pairwise(task.model.layers):
                if isinstance(before, nn.Module) and isinstance(after, Cell):
                    for parameter in before.parameters():
                        parameter.mul_(gain)
        else:
            task.x.mul_(gain)
    return task
