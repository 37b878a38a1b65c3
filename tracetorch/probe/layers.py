"""What there is to see in a model, and how its dimensions are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from tracetorch.core.checks import check_module
from tracetorch.core.walk import modules_of, named_modules
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.states import named_neurons
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.trajectories import ENDS
from tracetorch.unrolling.unsupported import unsupported_reason


def neurons_of(model: nn.Module) -> dict[str, Neuron]:
    """Every neuron layer of ``model`` by path.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: it has no neuron layer.
    """
    check_module(model)
    found = dict(named_neurons(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no neuron layer: nothing in it has states.")
    return found


def names_of(layers: dict[str, Neuron]) -> dict[str, tuple[str, str]]:
    """Path of the layer and own name of everything that can be recorded, by full name."""
    return {
        f"{path}.{name}" if path else name: (path, name)
        for path, layer in layers.items()
        for name in (*layer.active_states, *ENDS)
    }


def dims_of(path: str, ndim: int, layer: Neuron | None = None) -> tuple[str, ...]:
    """Names of the dimensions of a trajectory ``[T, B, ...]``, those of one layer with its path."""
    before = f"{path}." if path else ""
    named = ["time", "batch", *(f"{before}{i}" for i in range(ndim - 2))][:ndim]
    at = 0 if layer is None else layer.dim + (ndim if layer.dim < 0 else 1)
    if at > 1:
        named[at] = f"{before}neuron"
    return tuple(named)


def spike_functions(layer: nn.Module) -> list[str]:
    """Names of a neuron layer's options that are functions to 0 and 1; none: it does not spike."""
    if not isinstance(layer, Neuron):
        return []
    return [name for name in layer.options if _makes_spikes(getattr(layer, name))]


def _makes_spikes(option: object) -> bool:
    if not callable(option):
        return False
    device = None
    if isinstance(option, nn.Module):
        device = next((p.device for p in option.parameters()), None)
    with torch.no_grad():
        spikes = option(torch.linspace(-4, 4, 9, device=device))
    return isinstance(spikes, torch.Tensor) and bool(((spikes == 0) | (spikes == 1)).all())


def called_in_order(model: nn.Module, given: Inputs, by: Literal["layer", "step"]) -> list[str]:
    """Paths of the modules in the order in which they are first done with a step.

    It makes one step from the states the model holds, without a graph, and zeroes them: call it
    inside :func:`restored`.

    Raises:
        ValueError: the model is to run by layer, and cannot.
    """
    reason = unsupported_reason(modules_of(model, closed=Recurrent)) if by == "layer" else None
    if reason is not None:
        raise ValueError(f'{reason}: it cannot run by layer. Use by="step".')
    order: list[str] = []
    hooks = []
    for path, module in named_modules(model):

        def note(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
            order.append(path)

        hooks.append(module.register_forward_hook(note))
    try:
        with tried(model):
            call(model, next(given.first(1).each_step()))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


@contextmanager
def tried(model: nn.Module) -> Iterator[None]:
    """Around some steps to look at, without a graph; then modes are put back and states zeroed.

    Evaluation mode, for one step may be too little for the statistics of a batch norm.
    """
    modes = [(module, module.training) for _, module in named_modules(model)]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        zero_states(model)
