"""The floor: read the input once and write as much; twice that with a backward."""

from __future__ import annotations

import torch

from benchmarks.cases import Case
from benchmarks.torch_task import inputs


class Copy:
    """``copy_`` into memory that is already there."""

    def __init__(self, case: Case) -> None:
        self.x = inputs(case)
        self.out = torch.empty_like(self.x)
        self.times = 2 if case.way == "train" else 1

    def run(self) -> None:
        """Copy."""
        for _ in range(self.times):
            self.out.copy_(self.x)

    def density(self) -> float:
        """Nothing spikes."""
        return float("nan")


def version() -> str:  # noqa: D103
    return f"torch {torch.__version__}"


def refuses(case: Case) -> str | None:  # noqa: D103
    if case.kind in ("lif", "growth", "bsrlif"):
        return None
    return "says nothing about it"


def prepare(case: Case) -> Copy:  # noqa: D103
    return Copy(case)
