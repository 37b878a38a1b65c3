"""Run a model over the sample, and see what its neurons do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.chips.xylo import StepDelay
from tracetorch.core.snapshot import restored
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling import unroll


def neurons_of(model: nn.Sequential) -> dict[str, tuple[str, Neuron]]:
    """Return path and neurons of every stage, by the name of its child."""
    found: dict[str, tuple[str, Neuron]] = {}
    for name, module in model.named_children():
        inner = module.neuron if isinstance(module, Recurrent) else module
        if isinstance(inner, Neuron) and not isinstance(inner, StepDelay):
            found[name] = (f"{name}.neuron" if inner is not module else name, inner)
    return found


@torch.no_grad()
def observed(model: nn.Sequential, x: Tensor) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Return the output over a sample from rest, and outputs and states of all neurons.

    Nothing of the model changes.

    Args:
        model: what ``neurons_of`` finds neurons in.
        x: the sample.
    """
    neurons = neurons_of(model)
    record = [
        f"{path}.{state}"
        for path, layer in neurons.values()
        for state in (*layer.active_states, "output")
    ]
    with restored(model, training=False):
        output, seen = unroll(model, x, record=record, from_rest=True)
    return output, {
        name: {
            state: seen[f"{path}.{state}"].detach() for state in (*layer.active_states, "output")
        }
        for name, (path, layer) in neurons.items()
    }


def largest_each(values: Tensor, layer: Neuron) -> Tensor:
    """Return the largest magnitude over a sequence ``[T, ...]`` of every neuron."""
    dim = layer.dim if layer.dim < 0 else layer.dim + 1
    return values.abs().movedim(dim, 0).flatten(1).amax(1)


def reach_of(layer: Neuron, states: dict[str, Tensor]) -> Tensor:
    """Return how far the states of float neurons go, and their thresholds, of every neuron."""
    found = torch.zeros(layer.num_neurons, device=states["mem"].device)
    threshold = torch.zeros_like(found)
    for name in ("pos_threshold", "neg_threshold"):
        value = getattr(layer, name)
        if value is not None:
            threshold = torch.maximum(threshold, value.detach().abs().expand_as(found).to(found))
    found = torch.maximum(found, largest_each(states["mem"], layer).to(found) + threshold)
    if "syn" in states:
        found = torch.maximum(found, largest_each(states["syn"], layer).to(found))
    return found
