"""Lower bound: the cost of memory traffic, or of the products before the neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.adapters.relu import stateless
from benchmarks.cases import MAX_DELAY, NETWORKS, Case
from benchmarks.task import Task
from benchmarks.torch_task import TorchTask, inputs


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


def recurrent_products(case: Case) -> Task:
    """Build the products of a recurrent layer: one for each step, of all that is delayed."""
    times = MAX_DELAY + 1 if case.kind == "recurrent delays" else 1
    layer = nn.Linear(times * case.N, case.N)

    def run(x: Tensor) -> Tensor:
        return torch.stack([layer(step.repeat(1, times)) for step in x.unbind(0)])

    nothing = lambda: torch.tensor(float("nan"))  # noqa: E731
    return TorchTask(case, inputs(case), run, lambda: None, [*layer.parameters()], nothing)


def version() -> str:
    return f"torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    kinds = ("lif", "growth", "bsrlif", "alif", "seadlif", "recurrent", "recurrent delays")
    if case.kind in (*kinds, *NETWORKS):
        return None
    return "it is no bound for this case"


def prepare(case: Case) -> Task:
    if case.kind in ("recurrent", "recurrent delays"):
        return recurrent_products(case)
    # the network without its neurons
    return stateless(case, nn.Identity) if case.kind in NETWORKS else Copy(case)
