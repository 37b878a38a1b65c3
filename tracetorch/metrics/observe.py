"""Run a model from rest and measure the activity and operations of each of its modules."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from tracetorch.metrics.connections import OperationCounts, counted_by_call
from tracetorch.metrics.products import ProductCounter, counted_products
from tracetorch.probe.layers import call_order
from tracetorch.ragged import check_mask, filled, real_steps_first
from tracetorch.snn.module import keeps_states, zero_states
from tracetorch.snn.neuron import has_step
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs

# Activations in NeuroBench's sense, besides neurons that spike
_ACTIVATIONS = (nn.ReLU, nn.Sigmoid)


@dataclass
class ModuleStats:
    """Measurements of one module, summed over all real steps and samples.

    Args:
        path: path of the module in the model.
        module: the module.
        operations: operations of its products.
        multiplies: whether it computes products that are counted.
        uncounted: why products of it are not counted, each reason once.
        shape: shape of the output at one step, without the batch.
        values: number of output values of an activation.
        nonzero: number of those that are not zero.
        fired: number of spikes per neuron.
        total: number of steps at which each neuron could have fired.
        updates: number of membrane updates.
        output_bytes: memory of all outputs, views of the input excepted.
        state_bytes: memory of the states.
    """

    path: str
    module: nn.Module
    operations: OperationCounts = field(default_factory=OperationCounts)
    multiplies: bool = False
    uncounted: dict[str, None] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    values: int = 0
    nonzero: int = 0
    fired: Tensor | None = None
    total: Tensor | None = None
    updates: float = 0.0
    output_bytes: int = 0
    state_bytes: int = 0

    @property
    def spikes(self) -> bool:
        """Whether its output is spikes."""
        return bool(spike_functions(self.module))

    @property
    def activates(self) -> bool:
        """Whether its output is an activation in NeuroBench's sense."""
        return self.spikes or isinstance(self.module, _ACTIVATIONS)


class _Run:
    """A run of a model whose calls of modules are measured.

    Args:
        inputs: the inputs.
        by: how the model runs.
        mask: ``[T, B]``, or ``None`` where all steps are real.
    """

    def __init__(self, inputs: Inputs, by: Literal["layer", "step"], mask: Tensor | None) -> None:
        self.steps = inputs.steps if by == "layer" else 1  # in a call
        self._batch, self._mask, self._all_steps = inputs.batch, mask, by == "layer"
        self._step = -1

    def advance(self, module: Any, args: Any) -> None:
        """Go to the next step: a hook before the model's forward pass."""
        self._step += 1

    def measure(
        self, stats: ModuleStats, counter: ProductCounter, m: Any, args: Any, kwargs: Any, y: Any
    ) -> None:
        """Add one call of a module to its measurements: a hook on its forward pass."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        with counter.suspended():
            if counter.counts_calls(m) and isinstance(x, Tensor):
                stats.operations.add(m, *self._real(stats, self._unfolded(x)))
            if isinstance(y, Tensor) and y.ndim:
                # A view of the input takes no memory of its own.
                if not (isinstance(x, Tensor) and x.data_ptr() == y.data_ptr()):
                    stats.output_bytes += y.numel() * y.element_size()
                output = self._unfolded(y)
                stats.shape = tuple(output.shape[2:])
                if stats.activates:
                    self._add_activation(stats, output)

    def _add_activation(self, stats: ModuleStats, output: Tensor) -> None:
        output, share = self._real(stats, output)
        stats.values += round(output.numel() * share)
        stats.nonzero += int(torch.count_nonzero(output))
        if stats.spikes and isinstance(stats.module, SequenceLayer):
            # Padding is zero by now: the spikes are right, the number of steps needs the share.
            fired, total = count_spikes(output, dim=stats.module.dim, mask=None)
            total = (total * share).round()
            stats.fired = fired if stats.fired is None else stats.fired + fired
            stats.total = total if stats.total is None else stats.total + total

    def _real(self, stats: ModuleStats, x: Tensor) -> tuple[Tensor, float]:
        """Return ``x`` ``[S, B, ...]`` with zeros for padding, and the share that is none.

        Raises:
            ValueError: the rows of ``x`` are not the samples.
        """
        if self._mask is None:
            return x, 1.0
        mask = self._mask if self._all_steps else self._mask[self._step : self._step + 1]
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
        if self.steps > 1 and x.ndim and len(x) and len(x) % (self.steps * self._batch) == 0:
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
    """Run a model from rest and return the measurements of every module, and the inputs.

    It runs in evaluation mode and without a graph, and is restored afterwards.
    """
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
            if (name := membrane_name(stats.module)) is not None and stats.path in called
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
            module = stats.module
            if keeps_states(module):
                # The last states are still in the layer, until the model is restored.
                attributes = map(module._attribute_of, module.active_states)
                states = [getattr(module, attribute) for attribute in attributes]
                stats.state_bytes = sum(
                    s.numel() * s.element_size() for s in states if s is not None
                )
    others = [stats for stats in modules if stats.multiplies and id(stats.module) not in counted]
    if others and (mask is not None or run.steps > 1):
        _count_by_step(model, x, modules, others, counted, steps, mask)
    return modules, inputs


def _count_by_step(
    model: nn.Module,
    x: Any,
    modules: list[ModuleStats],
    others: list[ModuleStats],
    counted: set[int],
    steps: int | None,
    mask: Tensor | None,
) -> None:
    """Count the products of modules in a run step by step, where a call holds one."""
    for stats in others:
        stats.operations = OperationCounts()
        if mask is not None:
            stats.multiplies = False
            stats.uncounted["no mask can follow the samples of its products"] = None
    if mask is None:
        with restored(model), torch.no_grad():
            prepare_run(model)
            with counted_products(model, modules, counted, 1):
                unroll(model, x, steps=steps, by="step")


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
