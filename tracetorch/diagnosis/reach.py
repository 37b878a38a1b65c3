"""Measure the distance of membranes from thresholds, and the surrogate's derivative there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tracetorch.snn.neuron import Neuron, spike_functions

_REACH = 0.1  # of the peak of the derivative
_GRID = torch.linspace(-4, 4, 4001, dtype=torch.float64, device="cpu")  # includes 0


class SpikeInputs(NamedTuple):
    """Inputs of a layer's spike functions, and where the surrogates have a slope, ``[T, B, ...]``.

    ``above`` are membranes minus threshold, of the first call in a step; empty where ``step`` calls
    no spike function and passes no gradient. ``in_reach`` is true where the derivative of any of
    them is at least a tenth of its peak.
    """

    above: dict[str, Tensor]
    in_reach: Tensor


def spike_inputs(layer: Neuron, x: Tensor, states: Mapping[str, Tensor]) -> SpikeInputs | None:
    """Run ``step`` again on all time steps at once, and record what its spike functions receive.

    The states of every step are known, so that no step depends on the one before. ``None`` for a
    layer without spike functions, one with several inputs, or one whose ``step`` is not pointwise,
    or calls no spike function and passes a gradient all the same. ``states`` are the trajectories
    of all states, from rest.
    """
    names = spike_functions(layer)
    if not names or len(layer.inputs) > 1 or set(states) != set(layer.active_states):
        return None
    dtype = next(iter(states.values())).dtype
    # Each step starts from the states after the one before it, the first from initial ones.
    before = {
        name: torch.cat([layer.initial_state(name, s[0].shape, dtype, s.device)[None], s[:-1]])
        for name, s in states.items()
    }
    calls: list[tuple[str, Tensor]] = []  # a step may call one several times, for several levels

    def recording(name: str, spike: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        calls.append((name, u))
        return spike(u)

    with torch.no_grad():
        step_kwargs = layer.step_kwargs(x.ndim - 1, dtype)
        wrapped = {name: partial(partial, recording, name) for name in names}
        _, after = layer.cell.run([x.to(dtype)], before, step_kwargs, wrapped)
    # Where all steps at once give other states than one by one, step is not pointwise.
    if not all(torch.allclose(after[n], s, atol=1e-4, equal_nan=True) for n, s in states.items()):
        return None
    if not calls:
        with torch.enable_grad():
            given = x.detach().to(dtype, copy=True).requires_grad_()
            leaves = {name: s.detach().clone().requires_grad_() for name, s in before.items()}
            output, _ = layer.cell.run([given], leaves, step_kwargs)
        if output.requires_grad:
            return None
    in_reach = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for name, u in calls:
        spike = getattr(layer, name)
        peak = float(derivative(spike, _GRID.to(u)).max())
        if peak > 0:  # a plain comparison has no slope anywhere
            in_reach |= derivative(spike, u) >= _REACH * peak
    return SpikeInputs(dict(reversed(calls)), in_reach)


def derivative(spike: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Return the derivative that a spike function has in the backward pass, by autograd."""
    with torch.enable_grad():
        leaf = u.detach().clone().requires_grad_()
        spikes = spike(leaf)
        if not spikes.requires_grad:  # a hard step: no gradient anywhere
            return torch.zeros_like(leaf)
        return torch.autograd.grad(spikes.sum(), leaf)[0].detach()
