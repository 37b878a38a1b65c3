"""Step one lane of a neuron eagerly in float64, for comparison with printed JavaScript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracetorch import snn


@dataclass(frozen=True)
class Lane:
    """Output, trajectories of the states, and the leaves they depend on."""

    x: Tensor
    params: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    output: Tensor
    record: Mapping[str, Tensor]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradients of ``x``, of the parameters and of the initial states by name."""
        leaves = {"x": self.x, **self.params, **{f"start {n}": s for n, s in self.start.items()}}
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(leaf) if d is None else d for (name, leaf), d in pairs}


def run_lane(
    layer: snn.Neuron,
    x: Sequence[float],
    params: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Lane:
    """Step through ``x`` from rest, with the parameters of the first neuron or with others."""
    kwargs = {**layer.step_kwargs(1, torch.float64), **(options or {})}
    leaves: dict[str, Tensor] = {}
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            first = value.detach().double().reshape(-1)[0].clone()
            given = first if params is None else torch.tensor(params[name], dtype=torch.float64)
            leaves[name] = kwargs[name] = given.requires_grad_()
    inputs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    shape = (torch.Size([layer.num_neurons]), torch.float64, torch.device("cpu"))
    rest = {name: layer.initial_state(name, *shape)[0].item() for name in layer.active_states}
    starts = {
        name: torch.tensor((start or rest)[name], dtype=torch.float64, requires_grad=True)
        for name in layer.active_states
    }
    states: list[Any] = [starts.get(name) for name in layer.states]
    outputs, record = [], []
    for step in inputs.unbind():
        output, *states = layer.step(step, *states, **kwargs)
        outputs.append(output)
        record.append([s for n, s in zip(layer.states, states, strict=True) if n in starts])
    seen = [torch.stack(list(each)) for each in zip(*record, strict=True)]
    trajectories = dict(zip(layer.active_states, seen, strict=True))
    return Lane(inputs, leaves, starts, torch.stack(outputs), trajectories)
