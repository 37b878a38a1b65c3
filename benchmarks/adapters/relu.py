"""The same networks with ReLU in place of neurons: what they cost beside everything else."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.adapters.ours import published
from benchmarks.cases import PUBLISHED, Case
from benchmarks.task import Task
from benchmarks.torch_task import Folded, TorchTask, flat, inputs, parts

KINDS = ("shd", "static", "dvs", "conv", *PUBLISHED)


def version() -> str:
    return f"torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return None if case.kind in KINDS else "it is measured on networks"


def stateless(case: Case, activation: type[nn.Module]) -> Task:
    """Build a network with an activation in place of its neurons; time is part of the batch."""
    layers = parts(case, lambda num, decay, dim: activation())
    learnable = [p for layer in flat(layers) for p in layer.parameters()]
    nothing = lambda: torch.tensor(float("nan"))  # noqa: E731
    return TorchTask(case, inputs(case), Folded(layers), lambda: None, learnable, nothing)


def prepare(case: Case) -> Task:
    if case.kind in PUBLISHED:
        model = published(case, lambda num_neurons, dim: nn.ReLU())
        nothing = lambda: torch.tensor(float("nan"))  # noqa: E731
        learnable = [*model.parameters()]
        return TorchTask(case, inputs(case), Folded([model]), lambda: None, learnable, nothing)
    return stateless(case, nn.ReLU)
