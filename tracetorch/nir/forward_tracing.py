"""Trace what a model's ``forward`` does with torch.fx, and refuse what no graph can express."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tracetorch.nir.model import NIRModel
from tracetorch.nir.module_to_node import PASSING
from tracetorch.snn import Neuron, TTModule
from tracetorch.snn.as_it_was import AsItWas
from tracetorch.snn.states import named_neurons

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_IN_PLACE = (operator.iadd, "add_")
# hooks that compute a module's own weight anew, and nothing else
_WEIGHT_HOOKS = (prune.BasePruningMethod, SpectralNorm, WeightNorm)


def trace_forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return the program of ``forward``, the shape of every value in its ``meta``.

    The model's states are neither read nor changed.

    Raises:
        TypeError: ``forward`` cannot be followed.
        ValueError: ``forward`` does what a graph cannot express, or does not take ``inputs``.
    """
    program = _traced(model)
    _check_program(program)
    try:
        # copies, for forward may write into what it is given
        _ShapeRecorder(program).run(*(x.clone() for x in inputs))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{list(x.shape)} {x.dtype}" for x in inputs)
        raise ValueError(
            f"{type(model).__name__} cannot run on a sample of {shapes}, the batch first: "
            f"{str(error).partition(chr(10))[0]}. Give one that the model takes."
        ) from error
    return program


def title_of(path: str, module: nn.Module) -> str:
    """Return how messages call a module: a short one as it prints, a large one by its type."""
    text = repr(module)
    return f"layer {path!r}, {type(module).__name__ if chr(10) in text else text},"


def check_modules(model: nn.Module) -> None:
    """Raise where a module computes more than its class says."""
    for path, module in model.named_modules():
        title = title_of(path, module) if path else f"the model, {type(module).__name__},"
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not isinstance(hook, _WEIGHT_HOOKS):
                raise ValueError(
                    f"{title} has the hook {hook!r}, which a graph cannot have. Remove it with its "
                    "handle's remove()."
                )
        if "forward" in vars(module):
            way = "Write it as a module of its own."
            if "_orig_mod" in module._modules:
                way = "Give what torch.compile was given, model._orig_mod."
            raise ValueError(f"{title} has a forward put in the place of its class's. {way}")


def _traced(model: nn.Module) -> fx.GraphModule:
    """Trace ``forward``; that runs it, and what it changed is restored and refused."""
    tracer = _Tracer()
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    before = AsItWas(model)
    states = [(p, layer, n) for p, layer in named_neurons(model) for n in layer.kept_states]
    live = torch.zeros(())  # for a forward that looks whether there is a state
    try:
        for _, layer, name in states:
            setattr(layer, name, live)
        program = fx.GraphModule(root, tracer.trace(root))
        changed = [f"{p}.{n}".lstrip(".") for p, m, n in states if getattr(m, n) is not live]
        # fx's own, for tensors made in forward
        changed += [n for n in before.changes() if not n.startswith("_tensor_constant")]
    except Exception as error:  # whatever the user's own forward makes of fx's stand-ins
        raise TypeError(
            f"the forward of {type(model).__name__} cannot be followed by torch.fx: {error}. NIR "
            "has no branches that depend on data; call modules, and add what they give."
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
    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the stand-in for a value."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take neurons, graphs and what comes with PyTorch as nodes; look into all else."""
        ours = isinstance(m, Neuron) or type(m).__module__.startswith("tracetorch.nir.")
        return ours or bool(super().is_leaf_module(m, module_qualified_name))


class _ShapeRecorder(fx.Interpreter):
    """Run a program once and note the shape of every value, without touching any state."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, NIRModel):
            shape = module.wiring.shapes[module.wiring.outputs[0]]
            return args[0].new_zeros(len(args[0]), *shape)
        keeps_shape = isinstance(module, (Neuron, *PASSING, *NORMS))
        return args[0] if keeps_shape else super().call_module(target, args, kwargs)


def _check_program(program: fx.GraphModule) -> None:
    """Raise for parameters used outside of layers, second calls of a memory, and aliased sums."""
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    remembering: set[nn.Module] = set()
    for node in order:
        if node.op == "get_attr":
            raise ValueError(
                f"the model's forward uses {node.target!r} by itself; in NIR parameters and states "
                "belong to a layer. Use nn.Linear, say."
            )
        module = program.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module in remembering:
            raise ValueError(
                f"{title_of(str(node.target), module)} is called twice in one step; as two nodes "
                "it would have two memories."
            )
        if isinstance(module, TTModule):  # the leaves among them all remember
            remembering.add(module)
        # A sum is written into a value, and into all that share its memory.
        written = node.args[0] if node.target in _IN_PLACE else None
        while isinstance(written, fx.Node):
            if any(order[user] > order[node] for user in written.users):
                name = node.target if isinstance(node.target, str) else "+="
                raise ValueError(
                    f"{name} in the model's forward writes into {written.name!r}, which is used "
                    "again afterwards; edges carry what a node gave. Write y = y + x."
                )
            written = written.args[0] if _shares_memory(program, written) else None


def _shares_memory(program: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a value may be the very memory that went in."""
    if node.op == "call_module":
        module = program.get_submodule(str(node.target))
        return isinstance(module, (*PASSING, nn.Flatten))
    return node.target in (*_IN_PLACE, torch.flatten, "flatten") and bool(node.args)
