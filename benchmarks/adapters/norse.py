"""Norse: ``LIFBoxCell``, and ``LSNNCell`` for ALIF, with learnable parameters, stepped.

Its step is ``v + k * (x - v)``; the input is multiplied by ``1 / k`` to be the same neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, LSNNCell
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.lsnn import LSNNFeedForwardState, LSNNParameters
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from benchmarks.cases import ADAPTATION, ADAPTATION_DECAY, THRESHOLD, Case
from benchmarks.task import Task
from benchmarks.torch_task import assemble

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


class AdaptiveCell(Cell):
    """Spiking layer of Norse whose threshold adapts."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        self.learnable = [
            nn.Parameter(torch.full((num,), value))
            for value in ((1 - decay) / DT, (1 - ADAPTATION_DECAY) / DT, THRESHOLD)
        ]
        parameters = LSNNParameters(
            # a current that lasts one step
            tau_syn_inv=torch.tensor(1 / DT),
            tau_mem_inv=self.learnable[0],
            tau_adapt_inv=self.learnable[1],
            v_th=self.learnable[2],
            # it decays before it acts, ours after
            beta=torch.tensor(ADAPTATION / ADAPTATION_DECAY),
        )
        self.adaptive = LSNNCell(parameters, dt=DT)
        self.adapted: LSNNFeedForwardState | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run one step."""
        if self.adapted is None:
            rest = torch.zeros_like(x)
            self.adapted = LSNNFeedForwardState(rest, rest, self.learnable[2].expand_as(x))
        spikes: Tensor
        spikes, self.adapted = self.adaptive(x, self.adapted)
        return spikes

    def reset(self) -> None:
        """Reset the state."""
        self.adapted = None


def version() -> str:
    return f"{installed('norse')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind in ("bsrlif", "recurrent") else None


def prepare(case: Case) -> Task:
    cell = AdaptiveCell if case.kind == "alif" else Cell
    return assemble(case, cell, folded=False, gain=lambda decay: 1 / (1 - decay))
