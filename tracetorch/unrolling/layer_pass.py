"""Run a neuron layer within a pass by layer: unfold time, run the sequence, fold it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tracetorch.core.torch_private import unsafe_view
from tracetorch.core.walk import modules_of
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling.trajectories import ENDS, TrajectoryCollector


class LayerPass:
    """Set on the neuron layers while ``unroll`` runs a model by layer; each calls it once.

    Args:
        steps: time steps that are folded into dimension 0.
        collector: where trajectories go; ``None`` where none is wanted.
    """

    def __init__(self, steps: int, collector: TrajectoryCollector | None) -> None:
        self.steps = steps
        self.collector = collector
        self.called: set[int] = set()

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
        if isinstance(layer, Recurrent):
            # the layers inside run step by step, and are recorded so
            inner = [m for _, m in modules_of(layer) if isinstance(m, Neuron) and m is not layer]
            with collector.listening(inner):
                y, trajectories = layer.forward_sequence(
                    x, states, after_step=lambda: collector.after_step(inner)
                )
        else:
            y, trajectories = layer.forward_sequence(x, states)
        for name, trajectory in (*trajectories.items(), ("input", x), ("output", y)):
            if name in wanted:
                collector.add_whole(layer, name, trajectory)
        # a view, for the recorded output is to be part of the graph behind the layer
        return y.flatten(0, 1)


@contextmanager
def layer_passes(
    layers: Sequence[Neuron], steps: int, collector: TrajectoryCollector | None
) -> Iterator[None]:
    """Within a block, make a call of any of ``layers`` a call on all time steps."""
    for layer in layers:
        if layer.layer_pass is not None:
            raise ValueError(
                f"{layer.label()} is unrolled inside a model that is unrolled by layer itself. Use "
                'unroll(..., by="step") for the outer one.'
            )
    layer_pass = LayerPass(steps, collector)
    for layer in layers:
        vars(layer)["layer_pass"] = layer_pass
    try:
        yield
    finally:
        for layer in layers:
            vars(layer)["layer_pass"] = None
