"""Run a neuron layer within a pass by layer: unfold time, run the sequence, fold it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tracetorch.core.torch_private import fold_leading_dims
from tracetorch.core.walk import modules_of
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling.trajectories import ENDS, TrajectoryCollector


class LayerPass:
    """Set on every neuron layer while ``unroll`` runs a model by layer; the layer calls it once.

    Args:
        steps: time steps that are folded into dimension 0.
        collector: where trajectories go.
    """

    def __init__(self, steps: int, collector: TrajectoryCollector) -> None:
        self.steps = steps
        self.collector = collector
        self.called = False

    def __call__(self, layer: Neuron, x: Tensor) -> Tensor:
        """Return outputs ``[T * B, ...]`` for inputs ``[T * B, ...]``.

        Raises:
            ValueError: the layer was called before, or dimension 0 does not hold ``T`` steps.
        """
        if self.called:
            raise ValueError(
                f"{layer.label()} is called twice in one step, so its steps cannot be run all at "
                'once. Use unroll(..., by="step").'
            )
        self.called = True
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] % self.steps:
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{layer.label()} got {got}, which does not hold {self.steps} time steps in "
                'dimension 0: something before it does not keep the batch first. Use by="step".'
            )
        x = torch.unflatten(x, 0, (self.steps, -1))
        wanted = self.collector.wanted_of(layer)
        if isinstance(layer, Recurrent):
            y, trajectories = self._run_recurrent(layer, x, wanted)
        else:
            y, trajectories = layer.forward_sequence(x, _states(wanted))
        if wanted:
            for name, trajectory in (*trajectories.items(), ("input", x), ("output", y)):
                if name in wanted:
                    self.collector.add_whole(layer, name, trajectory)
        if wanted or not y.is_contiguous():
            return y.flatten(0, 1)
        return fold_leading_dims(y)

    def _run_recurrent(
        self, layer: Recurrent, x: Tensor, wanted: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The layers inside run step by step, and so are recorded."""
        inner = [m for _, m in modules_of(layer) if isinstance(m, Neuron) and m is not layer]
        with self.collector.listening(inner):
            return layer.forward_sequence(
                x, _states(wanted), after_step=lambda: self.collector.after_step(inner)
            )


def _states(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([name for name in wanted if name not in ENDS]) if wanted else ()


@contextmanager
def layer_passes(
    layers: Sequence[Neuron], steps: int, collector: TrajectoryCollector
) -> Iterator[None]:
    """Within a block, make a call of any of ``layers`` a call on all time steps."""
    for layer in layers:
        if layer.layer_pass is not None:
            raise ValueError(
                f"{layer.label()} is unrolled inside a model that is unrolled by layer itself. Use "
                'unroll(..., by="step") for the outer one.'
            )
    for layer in layers:
        layer.layer_pass = LayerPass(steps, collector)
    try:
        yield
    finally:
        for layer in layers:
            layer.layer_pass = None
