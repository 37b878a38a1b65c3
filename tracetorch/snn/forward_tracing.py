"""Trace what a model's ``forward`` does with torch.fx."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from tracetorch.core.snapshot import Snapshot
from tracetorch.core.torch_private import one_trace_at_a_time
from tracetorch.snn.sequence_layer import SequenceLayer, transient_attributes_of
from tracetorch.snn.states import named_neurons

IN_PLACE = (operator.iadd, "add_")
IsLeaf = Callable[[nn.Module], bool]


@one_trace_at_a_time
def trace_forward(model: nn.Module, is_leaf: IsLeaf, advice: str) -> fx.GraphModule:
    """Return the program of ``forward``; raise where it cannot be followed or changes the model.

    Tracing runs ``forward``; what that changed is restored.

    Args:
        model: nothing of it changes.
        is_leaf: whether a module is one node, besides neurons and what comes with PyTorch.
        advice: what a forward may do, for messages.

    Raises:
        TypeError: ``forward`` cannot be followed.
        ValueError: ``forward`` sets an attribute.
    """
    tracer = _Tracer(is_leaf)
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    before = Snapshot(model)
    states = [(p, layer, n) for p, layer in named_neurons(model) for n in layer.active_states]
    live = torch.zeros(())  # for a forward that looks whether there is a state
    try:
        for _, layer, name in states:
            setattr(layer, name, live)
        program = fx.GraphModule(root, tracer.trace(root))
        changed = [f"{p}.{n}".lstrip(".") for p, m, n in states if getattr(m, n) is not live]
        others = before.changes(transient_attributes_of)
        # fx's own, for tensors made in forward
        changed += [n for n in others if not n.startswith("_tensor_constant")]
    except Exception as error:  # whatever the user's own forward makes of fx's stand-ins
        raise TypeError(
            f"the forward of {type(model).__name__} cannot be followed by torch.fx: {error}. "
            f"{advice}"
        ) from error
    finally:
        before.restore()
    if changed:
        raise ValueError(
            f"the forward of {type(model).__name__} sets {', '.join(map(repr, changed))}, which a "
            "graph cannot. Call zero_states(), and keep account, outside of forward."
        )
    return program


class _Proxy(fx.Proxy):
    """Stand in for a value, and tell ``y += x``, seen under every name, from ``y = y + x``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Take neurons, leaves and what comes with PyTorch as nodes; look into all else.

    torch.fx catches the calls of all modules there are: those of other threads pass by.
    """

    def __init__(self, is_leaf: IsLeaf) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, SequenceLayer) or self.is_leaf(m)
        return ours or bool(super().is_leaf_module(m, module_qualified_name))
