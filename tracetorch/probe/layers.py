"""Find the neuron layers of a model, their recordable names and call order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tracetorch.core.checks import check_module
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.spike_values import SPIKE_NAMES, Kind
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import spike_functions
from tracetorch.snn.passes import Pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import named_holders, named_neurons
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.trajectories import recordable


def neuron_layers(model: nn.Module) -> dict[str, SequenceLayer]:
    """Return every neuron layer of ``model`` by path; raise where there is none."""
    check_module(model)
    layers = dict(named_neurons(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no neuron layer: nothing in it has states.")
    return layers


def recordable_layers(model: nn.Module) -> dict[str, TTModule]:
    """Return every neuron layer of ``model``, and every module with a memory, by path."""
    check_module(model)
    return dict(named_holders(model)) or dict(neuron_layers(model))


def recordable_names(layers: Mapping[str, TTModule]) -> dict[str, tuple[str, str]]:
    """Map the full name of every recordable tensor to its layer's path and its own name."""
    return {
        join_path(path, name): (path, name)
        for path, layer in layers.items()
        for name in recordable(layer)
    }


def spike_kinds(layers: Mapping[str, TTModule]) -> dict[str, Kind]:
    """Tell spikes from states, by the full name of every recordable tensor.

    Inputs are left out, and the outputs of a layer that only passes them on, such as a delay.
    """
    kinds: dict[str, Kind] = {}
    for name, (path, own) in recordable_names(layers).items():
        kind = _output_kind(layers[path]) if own in SPIKE_NAMES else "state"
        if kind is not None and own != "input":
            kinds[name] = kind
    return kinds


def _output_kind(layer: object) -> Kind | None:
    """Return what a layer puts out; ``None`` where it alone does not decide that."""
    if isinstance(layer, Recurrent):
        return None if layer.holds_population else _output_kind(layer.neuron)
    # a layer that may have thresholds and has none is a readout
    thresholds = [
        getattr(layer, name) for name in ("pos_threshold", "neg_threshold") if hasattr(layer, name)
    ]
    if thresholds and all(threshold is None for threshold in thresholds):
        return "state"
    if not isinstance(layer, SequenceLayer) or not spike_functions(layer):
        return None
    return "spikes" if getattr(layer, "pos_scale", None) is None else "scaled spikes"


def call_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """List the paths of modules in the order in which they first finish a step; nothing changes."""
    order: dict[str, None] = {}
    # it returns None, so the output stays
    hooks = [(m, lambda *_, path=path: order.setdefault(path)) for path, m in named_modules(model)]
    # Evaluation mode: one step may be too little for the statistics of a batch norm.
    with (
        forward_hooks(after=hooks),
        restored(model, tensors=False, training=False),
        torch.no_grad(),
    ):
        Pass(from_rest=True).call(call, model, next(inputs.first(1).each_step()))
    return list(order)
