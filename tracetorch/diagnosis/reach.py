"""How near membranes came to their thresholds, and what the surrogate makes of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracetorch.probe.layers import spike_functions
from tracetorch.snn.neuron import Neuron

_REACH = 0.1  # of the peak of the derivative
_GRID = torch.linspace(-4, 4, 4001, dtype=torch.float64, device="cpu")  # holds 0


@dataclass(frozen=True)
class Approach:
    """What a layer's spike functions were given.

    Args:
        above: for each, membrane minus threshold as its test sees them, ``[T, B, ...]``.
        reached: where the derivative of any is at least a tenth of its peak, ``[T, B, ...]``.
    """

    above: dict[str, Tensor]
    reached: Tensor


def approach(layer: Neuron, x: Tensor, states: Mapping[str, Tensor]) -> Approach | None:
    """Run ``step`` once more, on all time steps at once, and listen at its spike functions.

    Every step's states are known, so no step has to wait for the one before it. ``None`` for a
    layer without spike functions, or one whose ``step`` is not pointwise.

    Args:
        layer: a neuron layer.
        x: what it was given, ``[T, B, ...]``.
        states: the trajectories of all its states, from rest.
    """
    names = spike_functions(layer)
    if not names or set(states) != set(layer.active_states):
        return None
    dtype = next(iter(states.values())).dtype
    before = {name: torch.cat([torch.zeros_like(s[:1]), s[:-1]]) for name, s in states.items()}
    above: dict[str, Tensor] = {}

    def listening(name: str, spike: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def heard(u: Tensor) -> Tensor:
            above[name] = u
            return spike(u)

        return heard

    with torch.no_grad():
        arguments: dict[str, Any] = layer.step_kwargs(x.ndim - 1, dtype)
        for name in names:
            arguments[name] = listening(name, arguments[name])
        results = layer.step(x.to(dtype), *map(before.get, layer.states), **arguments)
    ends = dict(zip(layer.states, results[1:], strict=True))
    if not all(torch.allclose(ends[n], s, atol=1e-4, equal_nan=True) for n, s in states.items()):
        return None
    reached = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for name, u in above.items():
        spike = getattr(layer, name)
        peak = float(derivative(spike, _GRID.to(u)).max())
        if peak > 0:  # a plain comparison has no slope anywhere
            reached |= derivative(spike, u) >= _REACH * peak
    return Approach(above, reached)


def derivative(spike: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The derivative that the spike function itself gives backward, whatever it is made of."""
    with torch.enable_grad():
        at = u.detach().clone().requires_grad_()
        spikes = spike(at)
        if not spikes.requires_grad:  # a hard step: no gradient anywhere
            return torch.zeros_like(at)
        return torch.autograd.grad(spikes.sum(), at)[0].detach()
