"""Run a neuron layer within a pass by layer: unfold time, run the sequence, fold it back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import exclude_from_compile, is_compiled, unsafe_view
from tracetorch.core.walk import modules_of
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.stateful_layer import running
from tracetorch.unrolling.trajectories import ENDS, TrajectoryCollector


class LayerPass:
    """Set on the neuron layers while ``unroll`` runs a model by layer; each calls it once.

    Args:
        steps: time steps that are folded into dimension 0.
        collector: where trajectories go; ``None`` where none is wanted.
        sets_aside: take the states away from layers that do not run, so that a ``forward`` that
            reads one is noticed.
    """

    def __init__(self, steps: int, collector: TrajectoryCollector | None, sets_aside: bool) -> None:
        self.steps = steps
        self.collector = collector
        self.sets_aside = sets_aside
        self.called: set[int] = set()
        self.states: dict[int, dict[str, Any]] = {}

    def __call__(self, layer: Neuron, x: Tensor) -> Tensor:
        """Return outputs ``[T * B, ...]`` for inputs ``[T * B, ...]``.

        Raises:
            ValueError: the layer was called before, or dimension 0 does not hold ``T`` steps.
        """
        if id(layer) in self.called:
            raise ValueError(
                f"{layer.label()} is called twice in one step, so its steps cannot be run all at "
                'once. Use unroll(..., by="step").'
            )
        self.called.add(id(layer))
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] % self.steps:
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{layer.label()} got {got}, which does not hold {self.steps} time steps in "
                'dimension 0: something before it does not keep the batch first. Use by="step".'
            )
        x = torch.unflatten(x, 0, (self.steps, -1))
        if not self.sets_aside:
            return self._run(layer, x)
        # torch.compile, of something inside the model, cannot follow what happens to the states
        compiling = torch.compiler.is_compiling()
        written = self.give_states_outside(layer) if compiling else self.give_states(layer)
        try:
            self.check_unwritten(layer, written)
            return self._run(layer, x)
        finally:
            self.take_states_outside(layer) if compiling else self.take_states(layer)

    def take_states(self, layer: Neuron) -> None:
        """Set the states of a layer aside, so that a ``forward`` that reads them is noticed."""
        attributes = layer.__dict__
        self.states[id(layer)] = {name: attributes.pop(name) for name in layer.states}

    def give_states(self, layer: Neuron) -> str | None:
        """Give a layer its states back, and return one that a ``forward`` has written meanwhile."""
        attributes = layer.__dict__
        states = self.states.pop(id(layer))
        written = None if attributes.keys().isdisjoint(states) else min(attributes.keys() & states)
        attributes.update(states)
        return written

    take_states_outside = exclude_from_compile(take_states)
    give_states_outside = exclude_from_compile(give_states)

    def check_unwritten(self, layer: Neuron, written: str | None) -> None:
        """Raise where a ``forward`` has written a state of a layer."""
        if written is not None:
            raise ValueError(
                f"{layer.label()} runs all of its time steps at once, so a forward cannot set its "
                f'state {written} in each of them. Use unroll(..., by="step").'
            )

    def _run(self, layer: Neuron, x: Tensor) -> Tensor:
        """Run the sequence and fold time back."""
        if self.collector is not None and self.collector.wants(layer):
            return self._run_recorded(layer, x, self.collector)
        y, _ = layer.forward_sequence(x)
        if not y.is_contiguous():
            return y.flatten(0, 1)
        return unsafe_view(y, (y.shape[0] * y.shape[1], *y.shape[2:]))

    def _run_recorded(self, layer: Neuron, x: Tensor, collector: TrajectoryCollector) -> Tensor:
        """Run the sequence and add what is wanted of the layer to the collector."""
        wanted = collector.wanted_of(layer)
        states = tuple(name for name in wanted if name not in ENDS)
        if "input" in wanted:
            x = x.clone()  # what the model does in place with the input must not reach the record
        if isinstance(layer, Recurrent):
            # the layers inside run step by step, and are recorded so
            inner: list[Neuron] = []
            for _, module in modules_of(layer):
                if isinstance(module, Neuron) and module is not layer:
                    inner += [module] * bool(collector.wanted_of(module))
            after_step = (lambda: collector.after_step(inner)) if inner else None
            with collector.listening(inner):
                y, trajectories = layer.forward_sequence(x, states, after_step=after_step)
        else:
            y, trajectories = layer.forward_sequence(x, states)
        for name, trajectory in (*trajectories.items(), ("input", x), ("output", y)):
            if name in wanted:
                collector.add_whole(layer, name, trajectory)
        if "output" in wanted:
            y = y.clone()  # nor what it does with the output
        return y.flatten(0, 1)


@contextmanager
def layer_passes(
    modules: Sequence[tuple[str, nn.Module]], steps: int, collector: TrajectoryCollector | None
) -> Iterator[None]:
    """Within a block, make a call of any neuron layer among ``modules`` a call on all steps."""
    if not torch.compiler.is_compiling() and running.by_layer:
        raise ValueError(
            "a model is unrolled by layer inside a model that is unrolled by layer itself. Use "
            'unroll(..., by="step") for the outer one.'
        )
    layers: list[Neuron] = []
    # with one step there is nothing between steps; torch.compile cannot follow it
    sets_aside = steps > 1 and not torch.compiler.is_compiling()
    compiler_loaded = "torch._dynamo" in sys.modules
    for _, module in modules:
        sets_aside = sets_aside and not (compiler_loaded and is_compiled(module))
        if isinstance(module, Neuron):
            layers.append(module)
    layer_pass = LayerPass(steps, collector, sets_aside)
    for layer in layers:
        vars(layer)["layer_pass"] = layer_pass
        if sets_aside:
            layer_pass.take_states(layer)
    if sets_aside:
        running.by_layer = True
    written: list[tuple[Neuron, str | None]] = []
    try:
        yield
    finally:
        if sets_aside:
            running.by_layer = False
        for layer in layers:
            vars(layer)["layer_pass"] = None
            if sets_aside:
                written.append((layer, layer_pass.give_states(layer)))
    for layer, name in written:
        layer_pass.check_unwritten(layer, name)
