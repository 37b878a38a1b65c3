"""The plain loop over time, and the reference for every kernel: ``step``, one time step at a time.

Faster than calling the layer ``T`` times because parameters are constrained and states checked once
for the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.snn.guard import guard
from tracetorch.snn.neuron import Neuron


def run(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor | None],
    arguments: dict[str, Any],
    record: Sequence[str],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs, final states and recorded trajectories of a sequence in the arithmetic's dtype."""
    outputs: list[Tensor] = []
    trajectories: dict[str, list[Tensor]] = {name: [] for name in record}
    kept: list[str] = []
    values: list[Tensor] = []
    for step in x.unbind(0):
        output, kept, values = layer.check_result(step, layer.step(step, *states, **arguments))
        given = dict(zip(kept, values, strict=True))
        states = [given.get(name) for name in layer.states]
        outputs.append(output)
        for name, trajectory in trajectories.items():
            trajectory.append(given[name])
    stacked = [torch.stack(outputs), *(torch.stack(t) for t in trajectories.values())]
    output, *results = guard([*stacked, *values])
    return output, results[len(record) :], results[: len(record)]
