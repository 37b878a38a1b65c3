"""Run a model from rest, step by step, and measure what each of its modules does."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_choice, check_has_values, check_module, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path, named_modules
from tracetorch.metrics.operations import ModuleStats
from tracetorch.metrics.product_counter import MULTIPLYING, Counter, WholeCalls
from tracetorch.probe.layers import call_order
from tracetorch.ragged import check_mask, filled, real_steps_first
from tracetorch.snn.module import keeps_states, zero_states
from tracetorch.snn.neuron import has_step
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs


def observe(
    model: nn.Module, x: Any, *, steps: int | None, by: object, mask: Tensor | None = None
) -> tuple[list[ModuleStats], Inputs]:
    """Run a model from rest, in evaluation mode; return what each module did, and the inputs."""
    check_module(model)
    check_unsharded(model, "tt.metrics")
    check_has_values(model)
    check_choice("by", by, ("layer", "step"))
    inputs = parse_inputs(x, steps)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and what is measured is per sample.")
    if mask is not None:
        leaf: Tensor = pytree.tree_leaves(inputs.tensors)[0]
        check_mask(mask, "x", leaf.new_empty(inputs.steps, inputs.batch))
    modules = [ModuleStats(path, module) for path, module in named_modules(model)]
    for stats in modules:
        stats.multiplies = isinstance(stats.module, MULTIPLYING)
    with restored(model), torch.no_grad():
        prepare_run(model)
        # unroll refuses to record a layer that is not called.
        called = call_order(model, inputs)
        membranes = {
            join_path(stats.path, name): stats
            for stats in modules
            # a layer without a step, a delay or a recurrent one, has no membrane itself
            if stats.path in called and has_step(stats.module)
            for name in sorted(stats.module.active_states, key="mem".__ne__)[:1]
        }
        run = Counter(model, mask)
        hooks = forward_hooks(
            before=[(model, run.begin_step), *((s.module, partial(run.begin, s)) for s in modules)],
            after=[(s.module, partial(run.end, s)) for s in modules],
        )
        # a compiled model would trace into the hooks
        eager = torch.compiler.set_stance("force_eager")
        with eager, hooks, WholeCalls(run), run:
            _, trajectories = unroll(model, x, steps=steps, by="step", record=list(membranes))
        for name, trajectory in trajectories.items():
            membranes[name].updates = _count_updates(trajectory, mask)
        for stats in modules:
            # The last states are still in the layer, until the model is restored.
            if keeps_states(module := stats.module):
                attributes = map(module._attribute_of, module.active_states)
                states = [getattr(module, attribute) for attribute in attributes]
                stats.state_bytes = sum(each.nbytes for each in states if each is not None)
    return modules, inputs


def _count_updates(membrane: Tensor, mask: Tensor | None) -> float:
    """Count changes of a membrane ``[T, B, ...]`` between real steps, the first step included."""
    real = None
    if mask is not None:
        # Padding between two real steps does not separate them.
        membrane, real = real_steps_first(membrane, mask), real_steps_first(mask, mask)[1:]
    changed = filled(membrane[1:] != membrane[:-1], real)
    return float(membrane[0].numel() + torch.count_nonzero(changed))


def prepare_run(model: nn.Module) -> None:
    for _, module in named_modules(model):
        module.eval()
    zero_states(model)
