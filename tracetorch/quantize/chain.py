"""Follow a call through a model, and find the chain of modules that it is."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import call_is_forward
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll

Chain = list[tuple[str, nn.Module]]
Shapes = dict[str, torch.Size]


def label(path: str, module: nn.Module) -> str:
    """Return how messages name a module."""
    return f"{path or 'the model'} ({type(module).__name__})"


def check_plain(path: str, module: nn.Module) -> None:
    """Check that a call of a module is its class's forward, and nothing else.

    Raises:
        ValueError: it is not.
    """
    if not call_is_forward(module):
        raise ValueError(
            f"{label(path, module)} has a hook or a forward of its own, or is compiled, and what "
            "that computes has no integer form. Remove it; torch.nn.utils.remove_weight_norm, "
            "remove_spectral_norm and prune.remove make a weight plain that a hook computes."
        )


@dataclass
class _Call:
    """Call of a module: what it took and returned, and how often either was changed in place."""

    path: str
    module: nn.Module
    taken: Any
    version_taken: int
    returned: Any = None
    version_returned: int = 0


def chain_of(model: nn.Module, x: Tensor) -> tuple[Chain, Shapes]:
    """Return the modules that a call runs, in order, and the shapes of their outputs, by path.

    Each module gets what the one before returned.

    Args:
        model: nothing of it changes.
        x: one step of an input.

    Raises:
        ValueError: a call runs something between modules, or one of them twice.
    """
    found: list[_Call] = []
    x = x.clone()
    with restored(model, training=False), torch.no_grad(), ExitStack() as hooks:
        closed: list[str] = []
        for path, module in named_modules(model):
            if any(path.startswith(f"{outer}.") for outer in closed):
                continue
            if isinstance(module, SequenceLayer) or "parametrizations" in module._modules:
                closed.append(path)
            elif next(module.children(), None) is not None:
                continue
            check_plain(path, module)
            before, after = partial(_record, found, path), partial(_complete, found)
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        zero_states(model)
        output = model(x)
    given, version = x, 0
    for call in found:
        if call.taken is not given or call.version_taken != version:
            raise ValueError(
                f"{label(call.path, call.module)} is given something else than what the module "
                "before it returned. A model is quantised as a chain of modules: use nn.Flatten "
                "and the like for what its forward computes in between."
            )
        given, version = call.returned, call.version_returned
    if given is not output or _version(output) != version:
        raise ValueError(
            "the model's forward computes something behind its last module. A model is quantised "
            "as a chain of modules: leave that to whoever calls it."
        )
    modules = [call.module for call in found]
    twice = next((c for c in found if sum(m is c.module for m in modules) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{label(twice.path, twice.module)} is called twice in a step: build two of it."
        )
    chain = [(call.path, call.module) for call in found]
    return chain, {call.path: getattr(call.returned, "shape", torch.Size()) for call in found}


def check_same(model: nn.Module, chain: Chain, x: Tensor) -> None:
    """Check that a model computes what the modules of its chain do, one after another.

    Both run by step, from rest, over a sequence, as they are in evaluation.

    Args:
        model: nothing of it changes.
        chain: of the model.
        x: a sequence.

    Raises:
        ValueError: it does not.
    """
    run = partial(unroll, x=x, by="step", from_rest=True)
    with torch.no_grad():
        with restored(model, training=False):
            wanted = run(model)
        with restored(model, training=False):
            found = run(_InTurn([module for _, module in chain]))
    near = torch.isclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    # the very same modules: where a sum is rounded in another way, few spikes differ
    if not float(near.double().mean()) > 0.99:
        raise ValueError(
            "the model's output over the sample is not that of its modules, one after another: a "
            "forward of its own, or a hook of a container, computes something besides. A model is "
            "quantised as a chain of modules, and nothing else."
        )


class _InTurn(TTModule):
    """Call modules one after another."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.turns = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last one returns."""
        for module in self.turns:
            x = module(x)
        return x


def _version(value: Any) -> int:
    """Return how often a tensor was changed in place."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _record(
    found: list[_Call],
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Keep what a module takes."""
    if len(args) != 1 or kwargs:
        raise ValueError(f"{label(path, module)} is called with other arguments than one input.")
    found.append(_Call(path, module, args[0], _version(args[0])))


def _complete(found: list[_Call], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Keep what the module returns whose call was the last to begin."""
    found[-1].returned, found[-1].version_returned = output, _version(output)
