"""Sinabs: ``LIF``, ``ALIF`` over ``[B, T, ...]``, one spike a step at most, subtracted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from sinabs.activation import SingleSpike
from sinabs.layers import ALIF, LIF
from torch import Tensor

from benchmarks.cases import ADAPTATION, ADAPTATION_DECAY, THRESHOLD, Case
from benchmarks.task import Task
from benchmarks.torch_task import assemble


class Cell:
    """Spiking layer of Sinabs."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        shape = (num, *[1] * (-dim - 1))
        # its decay is exp(-1 / tau)
        self.layer = LIF(
            tau_mem=torch.full(shape, -1 / math.log(decay)),
            spike_threshold=torch.full(shape, THRESHOLD),
            spike_fn=SingleSpike,
            train_alphas=True,
            norm_input=False,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Run the whole sequence."""
        y: Tensor = self.layer(x)
        return y

    def reset(self) -> None:
        """Reset the state."""
        if self.layer.is_state_initialised():
            self.layer.reset_states()

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return list(self.layer.parameters())


class AdaptiveCell(Cell):
    """Spiking layer of Sinabs whose threshold adapts."""

    def __init__(self, num: int, decay: float, dim: int) -> None:
        self.layer = ALIF(
            tau_mem=torch.full((num,), -1 / math.log(decay)),
            tau_adapt=torch.full((num,), -1 / math.log(ADAPTATION_DECAY)),
            adapt_scale=ADAPTATION / (1 - ADAPTATION_DECAY),
            spike_threshold=torch.full((num,), THRESHOLD),
            spike_fn=SingleSpike,
            train_alphas=True,
            norm_input=False,
        )


def version() -> str:
    return f"{installed('sinabs')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind in ("bsrlif", "recurrent") else None


def prepare(case: Case) -> Task:
    cell = AdaptiveCell if case.kind == "alif" else Cell
    return assemble(case, cell, folded=True, batch_first=True)
