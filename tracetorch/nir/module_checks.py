"""Refuse what no graph of NIR can express in the modules of a model."""

from __future__ import annotations

from torch import nn

from tracetorch.core.hooks import WEIGHT_HOOKS
from tracetorch.integers.border import Quantize, SumPool1d, SumPool2d
from tracetorch.integers.delays import IntegerDelays
from tracetorch.integers.layers import Product
from tracetorch.snn.stateful_layer import StatefulLayer, keeps_states


def check_modules(model: nn.Module) -> None:
    """Raise where a module computes more than its class says."""
    for path, module in model.named_modules():
        title = f"layer {path!r}, {module!r}," if path else f"the model, {type(module).__name__},"
        if isinstance(module, Product | IntegerDelays | Quantize | SumPool1d | SumPool2d):
            raise ValueError(
                f"layer {path!r} computes with integers, and integer layers have no NIR. "
                "Export the float network that tt.quantize.prepare was given."
            )
        if keeps_states(module) and not isinstance(module, StatefulLayer):
            names = " and ".join(map(repr, module.active_states))
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) keeps a memory of its own, "
                f"{names}, which no node of NIR has. Feed an output back by snn.Recurrent, or make "
                "it a state of an snn.Neuron."
            )
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not isinstance(hook, WEIGHT_HOOKS):
                problem = f"{title} has the hook {hook!r}, which a graph cannot have"
                raise ValueError(f"{problem}. Remove it with its handle's remove().")
        if "forward" in vars(module):
            way = "Write it as a module of its own."
            if "_orig_mod" in module._modules:
                way = "Give what torch.compile was given, model._orig_mod."
            raise ValueError(f"{title} has a forward put in the place of its class's. {way}")
