"""Follow in the autograd graph of one step which modules a module's output drives."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import Hook, PreHook, forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.stateful_layer import within_sequence
from tracetorch.unrolling.inputs import Inputs, call


def driven_modules(
    model: nn.Module, sources: Collection[str], inputs: Inputs
) -> dict[str, list[str]]:
    """Return the paths of the modules that each source drives, by its path; only those called.

    Runs one step from rest. The output of every module that ends a path is cut from its graph, that
    of a source becomes a leaf: a module that a leaf's gradient reaches is driven.

    Args:
        model: any module.
        sources: paths of modules that return a tensor, or several.
        inputs: the first step of them is run.
    """
    leaves: list[tuple[str, Tensor]] = []
    driven: dict[str, list[str]] = {}

    def find_sources_before(path: str) -> PreHook:
        def hook(module: Any, args: Any) -> None:
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

        return hook

    def detach_output(path: str) -> Hook:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
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

        return hook

    ends = [(path, m) for path, m in named_modules(model) if path in sources or _ends_a_path(m)]
    with (
        restored(model, tensors=False, training=False),
        forward_hooks(
            before=[(module, find_sources_before(path)) for path, module in ends],
            after=[(module, detach_output(path)) for path, module in ends],
        ),
        torch.inference_mode(False),
        torch.enable_grad(),
        within_sequence(),
    ):
        zero_states(model)
        # what was made in inference mode cannot be part of a graph, its copy can
        step = pytree.tree_map_only(Tensor, torch.clone, next(inputs.first(1).each_step()))
        call(model, step)
    return driven


def _ends_a_path(module: nn.Module) -> bool:
    """Whether a module makes something of its own of what it is given: neurons, or weights."""
    if isinstance(module, Neuron):
        return hasattr(module, "step")
    return any(True for _ in module.parameters(recurse=False))
