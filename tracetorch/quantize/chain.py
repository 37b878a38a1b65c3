"""Follow a call through a model, and find the chain of modules that it is."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
from tracetorch.snn.module import zero_states
from tracetorch.snn.sequence_layer import SequenceLayer

Chain = list[tuple[str, nn.Module]]


def label(path: str, module: nn.Module) -> str:
    """Return how messages name a module."""
    return f"{path or 'the model'} ({type(module).__name__})"


def chain_of(model: nn.Module, x: Tensor) -> Chain:
    """Return the modules that a call runs, in order; each gets what the one before returned.

    Args:
        model: nothing of it changes.
        x: one step of an input.

    Raises:
        ValueError: a call runs something between modules, or one of them twice.
    """
    found: list[tuple[str, nn.Module, Any, Any]] = []
    with restored(model, training=False), torch.no_grad(), ExitStack() as hooks:
        closed: list[str] = []
        for path, module in named_modules(model):
            if any(path.startswith(f"{outer}.") for outer in closed):
                continue
            if isinstance(module, SequenceLayer) or "parametrizations" in module._modules:
                closed.append(path)
            elif next(module.children(), None) is not None:
                continue
            record = partial(_record, found, path)
            hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        zero_states(model)
        output = model(x)
    given: Any = x
    for path, module, taken, returned in found:
        if taken is not given:
            raise ValueError(
                f"{label(path, module)} is given something else than what the module before it "
                "returned. A model is quantised as a chain of modules: use nn.Flatten and the like "
                "for what its forward computes in between."
            )
        given = returned
    if given is not output:
        raise ValueError(
            "the model's forward computes something behind its last module. A model is quantised "
            "as a chain of modules: leave that to whoever calls it."
        )
    modules = [module for _, module, _, _ in found]
    twice = next((f for f in found if sum(m is f[1] for m in modules) > 1), None)
    if twice is not None:
        raise ValueError(f"{label(twice[0], twice[1])} is called twice in a step: build two of it.")
    return [(path, module) for path, module, _, _ in found]


def _record(
    found: list[tuple[str, nn.Module, Any, Any]],
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    """Keep what a module took and returned."""
    if len(args) != 1 or kwargs:
        raise ValueError(f"{label(path, module)} is called with other arguments than one input.")
    found.append((path, module, args[0], output))
