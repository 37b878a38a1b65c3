"""Run a step in a plain loop over time: the reference for every kernel, and the fallback.

Faster than calling the layer ``T`` times, because parameters are constrained and states checked
once for the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.core.double_backward import explain_double_backward
from tracetorch.fuse.step_results import check_step_results


def run(
    cell: Cell | StepDefinition,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    record: Sequence[str],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return outputs, final states and recorded trajectories in the arithmetic's dtype."""
    outputs: list[Tensor] = []
    trajectories: dict[str, list[Tensor]] = {name: [] for name in record}
    active: dict[str, Tensor] = {}
    # unbind, not x[t]: the backward pass of an index is as long as the whole sequence
    for now in zip(*[x.unbind(0) for x in inputs], strict=True):
        output, active = check_step_results(cell, now, cell.step(*now, *states, **kwargs))
        states = [active.get(name) for name in cell.states]
        outputs.append(output)
        for name, trajectory in trajectories.items():
            trajectory.append(active[name])
    stacked = [torch.stack(outputs), *(torch.stack(t) for t in trajectories.values())]
    output, *results = explain_double_backward([*stacked, *active.values()])
    return output, results[len(record) :], results[: len(record)]
