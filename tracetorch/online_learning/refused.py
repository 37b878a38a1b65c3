"""Refuse models that traces cannot follow: hooks, replaced layers, a ``forward`` of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from tracetorch.core.torch_private import global_hooks
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer


def check_layers(
    modules: Sequence[tuple[str, nn.Module]], layers: Mapping[str, SequenceLayer]
) -> None:
    """Raise where the model has other neuron layers than those that the learner was made for."""
    now = {path: module for path, module in modules if isinstance(module, SequenceLayer)}
    changed = [path for path in (*now, *layers) if now.get(path) is not layers.get(path)]
    if changed:
        raise ValueError(
            f"the neuron layer {changed[0]!r} has been added, removed or replaced since the "
            "learner was made, and no trace follows it. Make a new learner by tt.online(model)."
        )


def check_backward_hooks(modules: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise where a hook would be called with, or change, the derivatives of the traces."""
    for path, module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"{layer_label(module, path)} has a backward hook: it would be called with "
                "derivatives that traces are computed from, and could not act on those of earlier "
                "steps. Remove it with its handle's remove(), or train by backpropagation through "
                "time."
            )
    if global_hooks():
        raise ValueError(
            "a hook is registered on all modules there are, by "
            "torch.nn.modules.module.register_module_..._hook: what it changes cannot be seen by "
            "traces. Remove it with its handle's remove(), or register it on single modules."
        )


def check_forward(path: str, layer: Neuron) -> None:
    """Raise where a call of a layer is not ``Neuron``'s, which runs ``step``."""
    for name in ("forward", "forward_step"):
        if name in vars(layer) or getattr(type(layer), name) is not getattr(Neuron, name):
            raise ValueError(
                f"{layer_label(layer, path)} has a {name} of its own, and traces are derived from "
                "step alone. Put what it adds into step, or into a module before or behind the "
                "layer."
            )


def changed_inside(layer: SequenceLayer, path: str) -> str:
    """Return the message for states that the model's forward has changed by itself."""
    return (
        f"{layer_label(layer, path)} has its states changed inside forward(), where its traces "
        "cannot follow. Call the layer itself, and zero_states() of the learner instead."
    )
