"""SpikingJelly under ``torch.compile``: minutes for each shape, so only the bare layer."""

from __future__ import annotations

import torch

from benchmarks.adapters import spikingjelly
from benchmarks.adapters.spikingjelly import version
from benchmarks.cases import Case
from benchmarks.task import Task
from benchmarks.torch_task import TorchTask

__all__ = ["prepare", "unsupported_reason", "version"]


def unsupported_reason(case: Case) -> str | None:
    return None if case.kind == "lif" else "compiles for minutes; the bare layer alone"


def prepare(case: Case) -> Task:
    task = spikingjelly.prepare(case)
    assert isinstance(task, TorchTask)
    task.model = torch.compile(task.model)
    return task
