"""This library step by step in plain PyTorch: what its kernels are measured against."""

from __future__ import annotations

from torch import Tensor

import tracetorch as tt
from benchmarks.adapters.ours import model_of, version
from benchmarks.cases import Case
from benchmarks.torch_task import TorchTask, inputs

__all__ = ["prepare", "refuses", "version"]


def refuses(case: Case) -> str | None:  # noqa: D103
    return None if case.kind == "bsrlif" else "only where asked for"


def prepare(case: Case) -> TorchTask:  # noqa: D103
    tt.fuse.backend("eager")
    model = model_of(case)

    def run(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x, by="step")
        return y

    reset = lambda: tt.zero_states(model)  # noqa: E731
    return TorchTask(case, inputs(case), run, reset, list(model.parameters()))
