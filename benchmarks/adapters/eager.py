"""traceTorch step by step in plain PyTorch: the reference of its kernels."""

from __future__ import annotations

from torch import Tensor

import tracetorch as tt
from benchmarks.adapters.ours import model_of, version
from benchmarks.cases import Case
from benchmarks.torch_task import TorchTask, inputs

__all__ = ["prepare", "unsupported_reason", "version"]


def unsupported_reason(case: Case) -> str | None:
    return None if case.kind in ("bsrlif", "alif", "seadlif") else "it is measured on few neurons"


def prepare(case: Case) -> TorchTask:
    tt.fuse.backend("eager")
    model = model_of(case)

    def run(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x, by="step")
        return y

    reset = lambda: tt.zero_states(model)  # noqa: E731
    return TorchTask(case, inputs(case), run, reset, list(model.parameters()))
