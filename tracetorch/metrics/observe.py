"""Run a model from rest and measure the activity and operations of each of its modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path, named_modules
from tracetorch.metrics.activity import count_spikes
from tracetorch.metrics.connections import call_operations, counted_by_call
from tracetorch.metrics.operations import NO_OPERATIONS, ModuleStats
from tracetorch.metrics.product_counter import ProductCounter, counted_products
from tracetorch.probe.layers import call_order
from tracetorch.ragged import check_mask, filled, real_steps_first
from tracetorch.snn.module import keeps_states, zero_states
from tracetorch.snn.neuron import has_step
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs


@dataclass
class _Run:
    """A run of a model whose calls of modules are measured."""

    inputs: Inputs
    by: Literal["layer", "step"]
    mask: Tensor | None  # [T, B], or None where all steps are real
    step: int = -1  # by step, the one that runs

    @property
    def steps(self) -> int:
        """Number of time steps in a call."""
        return self.inputs.steps if self.by == "layer" else 1

    def advance(self, module: Any, args: Any) -> None:
        """Go to the next step: a hook before the model's forward pass."""
        self.step += 1

    def measure(
        self, stats: ModuleStats, counter: ProductCounter, m: Any, args: Any, kwargs: Any, y: Any
    ) -> None:
        """Add one call of a module to its measurements: a hook on its forward pass."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        with counter.suspended():
            if counter.counts_calls(m) and isinstance(x, Tensor):
                stats.operations += call_operations(m, *self._real(stats, self._unfolded(x)))
            if not isinstance(y, Tensor) or not y.ndim:
                return
            # A view of the input takes no memory of its own.
            if not (isinstance(x, Tensor) and x.data_ptr() == y.data_ptr()):
                stats.output_bytes += y.numel() * y.element_size()
            output = self._unfolded(y)
            stats.shape = tuple(output.shape[2:])
            if not stats.activates:
                return
            output, share = self._real(stats, output)
            stats.values += round(output.numel() * share)
            stats.nonzero += float(count_spikes(output, dim=None, mask=None)[0])
            if stats.spikes and isinstance(m, SequenceLayer):
                # Padding is zero by now: the spikes are right, the number of steps needs the share.
                fired, total = count_spikes(output, dim=m.dim, mask=None)
                total = (total * share).round()
                stats.fired = fired if stats.fired is None else stats.fired + fired
                stats.total = total if stats.total is None else stats.total + total

    def _real(self, stats: ModuleStats, x: Tensor) -> tuple[Tensor, float]:
        """Return ``x`` ``[S, B, ...]`` with zeros for padding, and the share that is none."""
        if self.mask is None:
            return x, 1.0
        mask = self.mask if self.by == "layer" else self.mask[self.step : self.step + 1]
        if x.shape[:2] != mask.shape:
            raise ValueError(
                f"mask: {stats.path or 'the model'} ({type(stats.module).__name__}) works on "
                f"{list(x.shape[:2])} where steps and batch are {list(mask.shape)}: which of its "
                "rows are padding is unknown. Count each sequence by itself, without mask=."
            )
        return filled(x, mask), float(mask.double().mean())

    def _unfolded(self, x: Tensor) -> Tensor:
        """Return ``[S, B, ...]``: the ``S`` steps of one call, all of them by layer, else one.

        A model may have folded more than time into its batch, such as the patches of an image:
        ``[T * B * k, ...]``.
        """
        if self.steps > 1 and x.ndim and len(x) and len(x) % (self.steps * self.inputs.batch) == 0:
            return torch.unflatten(x, 0, (self.steps, -1))
        return x.unsqueeze(0)


def observe(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None,
    by: Literal["layer", "step"],
    mask: Tensor | None = None,
) -> tuple[list[ModuleStats], Inputs]:
    """Run a model from rest, in evaluation mode; return what each module did, and the inputs."""
    check_module(model)
    check_unsharded(model, "tt.metrics")
    check_has_values(model)
    inputs = parse_inputs(x, steps, 0, True)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and what is measured is per sample.")
    if mask is not None:
        leaf: Tensor = pytree.tree_leaves(inputs.tensors)[0]
        check_mask(mask, "x", leaf.new_empty(inputs.steps, inputs.batch))
    run = _Run(inputs, by, mask)
    modules = [ModuleStats(path, module) for path, module in named_modules(model)]
    for stats in modules:
        stats.multiplies = counted_by_call(stats.module, masked=mask is not None)
    counted = {id(stats.module) for stats in modules if stats.multiplies}
    with restored(model), torch.no_grad():
        prepare_run(model)
        # unroll refuses to record a layer that is not called.
        called = call_order(model, inputs, by)
        membranes = {
            join_path(stats.path, name): stats
            for stats in modules
            if stats.path in called and (name := membrane_name(stats.module)) is not None
        }
        with (
            counted_products(model, modules, counted, run.steps) as counter,
            forward_hooks(
                before=[(model, run.advance)],
                after=[(stats.module, partial(run.measure, stats, counter)) for stats in modules],
            ),
        ):
            _, trajectories = unroll(model, x, steps=steps, by=by, record=list(membranes))
        for name, trajectory in trajectories.items():
            membranes[name].updates = _count_updates(trajectory, mask)
        for stats in modules:
            # The last states are still in the layer, until the model is restored.
            if keeps_states(module := stats.module):
                attributes = map(module._attribute_of, module.active_states)
                states = [getattr(module, attribute) for attribute in attributes]
                stats.state_bytes = sum(each.nbytes for each in states if each is not None)
    # a call of several steps has shown of other modules only that they multiply
    others = [stats for stats in modules if stats.multiplies and id(stats.module) not in counted]
    if mask is not None:
        for stats in others:
            stats.multiplies, stats.operations = False, NO_OPERATIONS
            stats.uncounted["no mask can follow the samples of its products"] = None
    elif others and run.steps > 1:
        with restored(model), torch.no_grad():
            prepare_run(model)
            with counted_products(model, modules, counted, 1):
                unroll(model, x, steps=steps, by="step")
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
    """Set evaluation mode and zero the states."""
    for _, module in named_modules(model):
        module.eval()
    zero_states(model)


def membrane_name(module: nn.Module) -> str | None:
    """Name the state that is a neuron's membrane: ``mem``, or else its first state."""
    # a layer without a step, a delay or a recurrent one, has no membrane itself
    if not has_step(module) or not module.active_states:
        return None
    return "mem" if "mem" in module.active_states else module.active_states[0]
