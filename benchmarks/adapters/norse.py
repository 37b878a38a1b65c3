"""Norse: ``LIFBoxCell`` with learnable parameters, stepped.

Its step is ``v + k * (x - v)``; the input is multiplied by ``1 / k`` to be the same neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from benchmarks.cases import CONV_DECAY, DECAY, THRESHOLD, Case
from benchmarks.torch_task import TorchTask, assemble

DT = 0.001


class Cell:
    """A layer of it."""

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
        """One step."""
        if self.state is None:
            self.state = LIFBoxFeedForwardState(torch.zeros_like(x))
        spikes: Tensor
        spikes, self.state = self.cell(x, self.state)
        return spikes

    def reset(self) -> None:
        """Forget the state."""
        self.state = None

    def parameters(self) -> Sequence[Tensor]:
        """What learns."""
        return self.learnable


def version() -> str:  # noqa: D103
    return f"{installed('norse')}, torch {torch.__version__}"


def refuses(case: Case) -> str | None:  # noqa: D103
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> TorchTask:  # noqa: D103
    task = assemble(case, Cell, folded=False)
    layers = getattr(task.model, "layers", None)
    if case.kind in ("linear", "conv"):
        # the weights before each neuron take up the factor, so the timed run has nothing more
        with torch.no_grad():
            for layer in layers[:-1] if case.kind == "conv" else layers:
                if isinstance(layer, nn.Module):
                    for parameter in layer.parameters():
                        parameter /= 1 - (CONV_DECAY if case.kind == "conv" else DECAY)
    else:
        with torch.no_grad():
            task.x /= 1 - DECAY
    return task
