"""Run a neuron layer within a pass by layer: unfold time, run the sequence, fold it back."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any, NoReturn

import torch
from torch import Tensor

from tracetorch.core.thread_owner import check_thread
from tracetorch.core.torch_private import exclude_from_compile, is_jit_tracing, unsafe_view
from tracetorch.core.walk import Opaque, modules_of
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.restarts import Restarts
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.state_holder import StateHolder
from tracetorch.snn.stateful_layer import running
from tracetorch.unrolling.restarts import restarted_sequence
from tracetorch.unrolling.trajectories import ENDS, TrajectoryCollector


class LayerPass(Opaque):
    """Within a block, make a call of any of some neuron layers a call on all steps.

    Args:
        layers: the neuron layers of a model; each calls it once.
        steps: time steps that are folded into dimension 0.
        collector: where trajectories go; ``None`` where none is wanted.
        has_compiled: whether a part of the model runs compiled.
        reset: where samples start anew before a step; ``None`` for nowhere.

    Raises:
        ValueError: another pass by layer is running in this thread.
    """

    def __init__(
        self,
        layers: Sequence[SequenceLayer],
        steps: int,
        collector: TrajectoryCollector | None,
        has_compiled: bool,
        reset: Restarts | None = None,
    ) -> None:
        compiling = torch.compiler.is_compiling()
        if not compiling and running.by_layer:
            raise ValueError(
                "a model is unrolled by layer inside a model that is unrolled by layer itself. Use "
                'unroll(..., by="step") for the outer one.'
            )
        self.layers = layers
        self.steps = steps
        # torch.compile cannot follow what a thread notes for itself
        self.thread = None if compiling else get_ident()
        self.collector = collector
        self.reset = reset
        # Take the states away from layers that do not run, so that a forward that reads one is
        # noticed; with one step there is nothing between steps, and torch.compile cannot follow it.
        self.sets_aside = steps > 1 and not compiling and not has_compiled
        self.called: set[int] = set()
        self.states: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.__dict__["layer_pass"] = self
            if self.sets_aside:
                self.take_states(layer)
        if self.sets_aside:
            running.by_layer = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.sets_aside:
            running.by_layer = False
        written: list[tuple[SequenceLayer, str]] = []
        for layer in self.layers:
            layer.__dict__["layer_pass"] = None
            if self.sets_aside:
                name = self.give_states(layer)
                if name is not None:
                    written.append((layer, name))
        if kind is None:
            for layer, name in written:
                self.raise_written(layer, name)

    def __call__(self, layer: SequenceLayer, x: Tensor, *further: Tensor) -> Tensor:
        """Return outputs ``[T * B, ...]`` for inputs ``[T * B, ...]``.

        Raises:
            ValueError: the layer was called before, another thread runs it, or dimension 0 does not
                hold ``T`` steps.
        """
        if not torch.compiler.is_dynamo_compiling() and get_ident() != self.thread:
            check_thread(layer)
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
        if further:
            further = tuple([self._unfold(layer, each, x) for each in further])
        x = x.view((self.steps, x.shape[0] // self.steps, *x.shape[1:]))
        if not self.sets_aside:
            return self._run(layer, x, further)
        # torch.compile, of something inside the model, cannot follow what happens to the states
        compiling = torch.compiler.is_compiling()
        written = self.give_states_outside(layer) if compiling else self.give_states(layer)
        try:
            if written is not None:
                self.raise_written(layer, written)
            return self._run(layer, x, further)
        finally:
            self.take_states_outside(layer) if compiling else self.take_states(layer)

    def _unfold(self, layer: SequenceLayer, value: Tensor, x: Tensor) -> Tensor:
        """Unfold time of an input beside ``x``; what is the same in all steps stays as it is."""
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        folded, samples = value.shape[0] == x.shape[0], x.shape[0] // self.steps
        if value.ndim == x.ndim and folded:
            return value.reshape((self.steps, samples, *value.shape[1:]))
        # Of fewer dimensions it may be one value per neuron, or, with one sample, time folded into
        # samples, which would then be taken for neurons.
        constant = value.shape[0] in (1, samples) or value.ndim < x.ndim
        if not constant or (folded and self.steps > 1 and samples == 1):
            raise ValueError(
                f"{layer.label()} got an input of shape {list(value.shape)} beside one of "
                f"{list(x.shape)}, which holds {self.steps} time steps in dimension 0. Give it as "
                "many dimensions and as many steps, or, what is the same in all steps, with a "
                'dimension of size 1 in front; or use by="step".'
            )
        return value

    def take_states(self, layer: SequenceLayer) -> None:
        """Set the states of a layer aside, so that a ``forward`` that reads them is noticed."""
        attributes = layer.__dict__
        taken = self.states[id(layer)] = {}
        for name in layer.states:
            taken[name] = attributes[name]
            del attributes[name]

    def give_states(self, layer: SequenceLayer) -> str | None:
        """Give a layer its states back, and return one that a ``forward`` has written meanwhile."""
        attributes = layer.__dict__
        written: str | None = None
        for name, state in self.states[id(layer)].items():
            if name in attributes:
                written = name if written is None else min(written, name)
            attributes[name] = state
        del self.states[id(layer)]
        return written

    take_states_outside = exclude_from_compile(take_states)
    give_states_outside = exclude_from_compile(give_states)

    def raise_written(self, layer: SequenceLayer, name: str) -> NoReturn:
        """Raise because a ``forward`` has written a state of a layer."""
        raise ValueError(
            f"{layer.label()} runs all of its time steps at once, so a forward cannot set its "
            f'state {name} in each of them. Use unroll(..., by="step").'
        )

    def _run(self, layer: SequenceLayer, x: Tensor, further: tuple[Tensor, ...]) -> Tensor:
        """Run the sequence and fold time back."""
        # not every layer has an argument for further inputs
        more: dict[str, Any] = {"further": further} if further else {}
        if self.collector is not None and self.collector.wants(layer):
            return self._run_recorded(layer, x, more, self.collector)
        if self.reset is None:
            y, _ = layer.forward_sequence(x, **more)
        else:
            y, _ = self._sequence(layer, x, (), more)
        if not y.is_contiguous():
            return y.flatten(0, 1)
        folded = (y.shape[0] * y.shape[1], *y.shape[2:])
        # without a graph a view is as good, and costs a third; a trace is checked without one
        if torch.is_grad_enabled() or is_jit_tracing():
            return unsafe_view(y, folded)
        return y.view(folded)

    def _sequence(
        self, layer: SequenceLayer, x: Tensor, record: tuple[str, ...], more: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.reset is None:
            return layer.forward_sequence(x, record, **more)
        if x.shape[1] != self.reset.mask.shape[1]:
            raise ValueError(
                f"{layer.label()} got {x.shape[1]} samples in each step, and reset= says of "
                f"{self.reset.mask.shape[1]} where they start anew: something before it changes "
                'the batch. Use unroll(..., by="step").'
            )
        return restarted_sequence(layer, x, record, self.reset, more)

    def _run_recorded(
        self,
        layer: SequenceLayer,
        x: Tensor,
        more: dict[str, Any],
        collector: TrajectoryCollector,
    ) -> Tensor:
        """Run the sequence and add what is wanted of the layer to the collector."""
        wanted = collector.wanted_of(layer)
        states = tuple(name for name in wanted if name not in ENDS)
        if "input" in wanted:
            x = x.clone()  # what the model does in place with the input must not reach the record
        if isinstance(layer, Recurrent):
            # the layers inside run step by step, and are recorded so
            inner: list[StateHolder] = []
            for _, module in modules_of(layer):
                if isinstance(module, StateHolder) and module is not layer:
                    inner += [module] * bool(collector.wanted_of(module))
            after_step = (lambda: collector.after_step(inner)) if inner else None
            with collector.listening(inner):
                y, trajectories = self._sequence(layer, x, states, {"after_step": after_step})
        else:
            y, trajectories = self._sequence(layer, x, states, more)
        for name, trajectory in (*trajectories.items(), ("input", x), ("output", y)):
            if name in wanted:
                collector.add_whole(layer, name, trajectory)
        if "output" in wanted:
            y = y.clone()  # nor what it does with the output
        return y.flatten(0, 1)
