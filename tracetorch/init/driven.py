"""Follow the calls of one step: their order, and which modules a module's output drives."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.init.stages import Stage, sources, stages
from tracetorch.probe.layers import call_order, neuron_layers
from tracetorch.snn.delay import Delay
from tracetorch.snn.neuron import has_step
from tracetorch.snn.passes import Pass
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, call


class Calls(NamedTuple):
    """The calls of one step of a model.

    Args:
        by: how the model runs.
        order: paths of the modules in the order of their calls.
        drivers: paths of what drives each neuron layer directly, by its path.
        stages: the neuron layers with the last that drives them, in the order of the calls.
    """

    by: Literal["layer", "step"]
    order: list[str]
    drivers: dict[str, list[str]]
    stages: list[Stage]


def follow_calls(model: nn.Module, inputs: Inputs) -> Calls:
    """Pair neuron layers with what drives them, in the order of the calls of one step."""
    with restored(model):
        by: Literal["layer", "step"] = "layer" if _runs_by_layer(model, inputs) else "step"
        order = call_order(model, inputs, by)
        driven = driven_modules(model, sources(model), inputs)
    drivers = _drivers(model, order, driven)
    return Calls(by, order, drivers, stages(model, _arranged(model, order, drivers)))


def _runs_by_layer(model: nn.Module, inputs: Inputs) -> bool:
    few = inputs.first(2)
    with restored(model), torch.no_grad(), suppress(ValueError):
        unroll(model, few.tensors, steps=few.steps if few.static else None, from_rest=True)
        return True
    return False


def _drivers(
    model: nn.Module, order: list[str], driven: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Return the sources that drive each neuron layer, by its path, in the order of their calls."""
    neurons = neuron_layers(model)
    drivers: dict[str, list[str]] = {}
    for source in (path for path in order if path in driven):
        found = [path for path in driven[source] if path in neurons]
        if len(found) > 1:
            raise ValueError(
                f"{source!r} drives {', '.join(map(repr, found))}: one scale cannot fit them all. "
                "Give each neuron layer a layer with weights of its own."
            )
        if found:
            drivers.setdefault(found[0], []).append(source)
    return drivers


def _arranged(model: nn.Module, order: list[str], drivers: dict[str, list[str]]) -> list[str]:
    """Move what drives neurons, and the delays behind it, to just before them."""
    modules = dict(named_modules(model))
    moved = {source for each in drivers.values() for source in each}
    arranged: list[str] = []
    for path in order:
        if path in moved:
            continue
        driving = drivers.get(path, [])
        begun = order.index(driving[-1]) if driving else len(order)
        behind = [p for p in arranged if isinstance(modules[p], Delay) and order.index(p) > begun]
        arranged = [p for p in arranged if p not in behind] + driving + behind + [path]
    return arranged


def driven_modules(
    model: nn.Module, sources: Collection[str], inputs: Inputs
) -> dict[str, list[str]]:
    """Return the paths of the modules that each source drives, by its path; only those called.

    Runs the first step of the inputs from rest. The output of every module that ends a path is cut
    from its graph, that of a source becomes a leaf: a module that a leaf's gradient reaches is
    driven. A source returns a tensor, or several.
    """
    leaves: list[tuple[str, Tensor]] = []
    driven: dict[str, list[str]] = {}

    def find_sources(path: str, module: Any, args: Any) -> None:
        given = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        given = [t for t in given if t.requires_grad]
        if not given or not leaves:
            return
        grads = torch.autograd.grad(
            given,
            [leaf for _, leaf in leaves],
            list(map(torch.ones_like, given)),
            retain_graph=True,
            allow_unused=True,
        )
        for (source, _), grad in zip(leaves, grads, strict=True):
            if grad is not None and path not in driven[source]:
                driven[source].append(path)

    def detach_output(path: str, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if path not in sources:
            return pytree.tree_map_only(Tensor, torch.Tensor.detach, output)
        driven.setdefault(path, [])

        def cut(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value
            leaf = value.detach().requires_grad_()
            leaves.append((path, leaf))
            return leaf.clone()  # which may be written into

        return pytree.tree_map_only(Tensor, cut, output)

    ends = [(path, m) for path, m in named_modules(model) if path in sources or _ends_a_path(m)]
    with (
        restored(model, training=False),
        forward_hooks(
            before=[(module, partial(find_sources, path)) for path, module in ends],
            after=[(module, partial(detach_output, path)) for path, module in ends],
        ),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        # what was made in inference mode cannot be part of a graph, its copy can
        step = pytree.tree_map_only(Tensor, torch.clone, next(inputs.first(1).each_step()))
        Pass(from_rest=True).call(call, model, step)
    return driven


def _ends_a_path(module: nn.Module) -> bool:
    """Whether a module makes something of its own of what it is given: neurons, or weights."""
    if isinstance(module, SequenceLayer):
        return has_step(module)
    return any(True for _ in module.parameters(recurse=False))
