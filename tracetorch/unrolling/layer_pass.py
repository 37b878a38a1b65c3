"""A neuron layer's part in a pass by layer: unfold time, run the sequence, fold it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tracetorch.snn.neuron import Neuron
from tracetorch.unrolling.recording import Recording


class LayerPass:
    """Set on every neuron layer while ``unroll`` runs a model by layer; the layer calls it once.

    Args:
        steps: time steps that are folded into dimension 0.
        recording: where trajectories go.
    """

    def __init__(self, steps: int, recording: Recording) -> None:
        self.steps = steps
        self.recording = recording
        self.called = False

    def __call__(self, layer: Neuron, x: Tensor) -> Tensor:
        """Outputs ``[T * B, ...]`` for inputs ``[T * B, ...]``.

        Raises:
            ValueError: the layer was called before, or dimension 0 does not hold ``T`` steps.
        """
        if self.called:
            raise ValueError(
                f"{layer.named()} is called twice in one step, so its steps cannot be run all at "
                'once. Use unroll(..., by="step").'
            )
        self.called = True
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] % self.steps:
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{layer.named()} got {got}, which does not hold {self.steps} time steps in "
                'dimension 0: something before it does not keep the batch first. Use by="step".'
            )
        wanted = self.recording.of(layer)
        x = torch.unflatten(x, 0, (self.steps, -1))
        y, trajectories = layer.sequence(x, self.recording.states_of(layer), self.recording)
        for name, trajectory in (*trajectories.items(), ("input", x), ("output", y)):
            if name in wanted:
                self.recording.whole(layer, name, trajectory)
        if wanted or not y.is_contiguous():
            return y.flatten(0, 1)
        # as flatten, but not a view: FSDP loses gradients where a module's output is one and is
        # changed in place
        folded: Tensor = torch.ops.aten._unsafe_view(y, (y.shape[0] * y.shape[1], *y.shape[2:]))
        return folded


@contextmanager
def passing(layers: Sequence[Neuron], steps: int, recording: Recording) -> Iterator[None]:
    """While it lasts, a call of any of ``layers`` is a call on all time steps."""
    for layer in layers:
        if layer.layer_pass is not None:
            raise ValueError(
                f"{layer.named()} is unrolled inside a model that is unrolled by layer itself. Use "
                'unroll(..., by="step") for the outer one.'
            )
    for layer in layers:
        layer.layer_pass = LayerPass(steps, recording)
    try:
        yield
    finally:
        for layer in layers:
            layer.layer_pass = None
