"""Refuse models that traces cannot follow: hooks, replaced layers, a layer's ``forward_step``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from tracetorch.core.torch_private import global_hooks
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.sequence_layer import SequenceLayer


def check_model(
    modules: Sequence[tuple[str, nn.Module]],
    layers: Mapping[str, SequenceLayer],
    *,
    has_traces: bool,
) -> None:
    """Raise where traces cannot follow what modules do now, or the neuron layers are others."""
    now = {path: module for path, module in modules if isinstance(module, SequenceLayer)}
    changed = [path for path in (*now, *layers) if now.get(path) is not layers.get(path)]
    if changed:
        raise ValueError(
            f"the neuron layer {changed[0]!r} has been added, removed or replaced since the "
            "learner was made, and no trace follows it. Make a new learner by tt.online(model)."
        )
    if not has_traces:
        return
    if global_hooks():
        raise ValueError(
            "a hook is registered on all modules there are, by "
            "torch.nn.modules.module.register_module_..._hook: what it changes cannot be seen by "
            "traces. Remove it with its handle's remove(), or register it on single modules."
        )
    for path, module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"{layer_label(module, path)} has a backward hook: it would be called with "
                "derivatives that traces are computed from, and could not act on those of earlier "
                "steps. Remove it with its handle's remove(), or train by backpropagation through "
                "time."
            )
        if has_step(module) and (
            "forward_step" in vars(module) or type(module).forward_step is not Neuron.forward_step
        ):
            raise ValueError(
                f"{layer_label(module, path)} has a forward_step of its own, and traces are "
                "derived from step alone. Put what it adds into step, or into a module before or "
                "behind the layer."
            )


def changed_inside(layer: SequenceLayer, path: str) -> str:
    """Return the message for states that the model's forward has changed by itself."""
    return (
        f"{layer_label(layer, path)} has its states changed inside forward(), where its traces "
        "cannot follow. Call the layer itself, and zero_states() of the learner instead."
    )
