"""``TorchTask``: run a case in any library based on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.cases import CONV_DECAY, DECAY, Case


class Cell(Protocol):
    """A spiking layer that keeps its state; a call returns spikes alone."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def reset(self) -> None:
        """Reset the state."""

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""


MakeCell = Callable[[int, float, int], Cell]  # neurons, decay, neuron dimension
Model = Callable[[Tensor], Tensor]
Part = nn.Module | Cell


def inputs(case: Case) -> Tensor:
    """Return the input of a case: ``[T, B, N]``, or images ``[T, B, 1, 28, 28]``."""
    generator = torch.Generator().manual_seed(0)
    if case.kind == "conv":
        image = torch.rand(1, case.B, 1, 28, 28, generator=generator)
        return image.expand(case.T, *image.shape[1:])
    noise = torch.randn(case.T, case.B, case.N, generator=generator)
    return noise if case.kind == "linear" else noise * 0.5 + 0.3


def linear(N: int) -> nn.Linear:
    """Return a linear layer whose outputs make neurons spike about as in the bare case."""
    torch.manual_seed(0)
    layer = nn.Linear(N, N)
    nn.init.constant_(layer.bias, 0.3)
    return layer


def parts(case: Case, cell: MakeCell) -> list[Part]:
    """Return the layers of a case; the conv network ends with its linear layer, no readout."""
    if case.kind == "linear":
        return [linear(case.N), cell(case.N, DECAY, -1)]
    if case.kind == "conv":
        torch.manual_seed(0)
        return [
            nn.Sequential(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2)),
            cell(16, CONV_DECAY, -3),
            nn.Sequential(nn.Conv2d(16, 64, 5), nn.MaxPool2d(2)),
            cell(64, CONV_DECAY, -3),
            nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10)),
        ]
    return [cell(case.N, DECAY, -1)]


class Stepped:
    """Model that is called once per time step."""

    def __init__(self, layers: Sequence[Part]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs ``[T, B, ...]``."""
        outputs = []
        for y in x.unbind(0):
            for layer in self.layers:
                y = layer(y)
            outputs.append(y)
        return torch.stack(outputs)


class Folded:
    """Model that folds time into the batch for stateless layers; neurons take the sequence."""

    def __init__(self, layers: Sequence[Part]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs with the two leading dimensions of ``x``."""
        first, second = x.shape[:2]
        for layer in self.layers:
            if isinstance(layer, nn.Module):
                x = layer(x.flatten(0, 1)).unflatten(0, (first, second))
            else:
                x = layer(x)
        return x


class TorchTask:
    """Run a model over the input of a case.

    Args:
        case: what to run.
        x: its input as the model wants it.
        model: maps the input to the outputs.
        reset: resets all states.
        learnable: parameters that get gradients; in a case of a bare layer the input does too.
        spiking: returns the spikes whose density is reported; the outputs where ``None``.
    """

    def __init__(
        self,
        case: Case,
        x: Tensor,
        model: Model,
        reset: Callable[[], None],
        learnable: Sequence[Tensor],
        spiking: Callable[[], Tensor] | None = None,
    ) -> None:
        # a bare layer also computes the gradient of its input, as inside a network
        alone = case.kind in ("lif", "recurrent", "bsrlif", "growth", "memory")
        self.train = case.way == "train"
        self.x = x.requires_grad_() if self.train and alone else x
        self.model, self.reset, self.learnable = model, reset, list(learnable)
        self.spiking = spiking
        self.grad: Tensor | None = None
        self.fresh = case.kind != "stream"

    def run(self) -> None:
        """Do the pass once, from fresh states; a streaming step continues from the last."""
        if self.fresh:
            self.reset()
        if not self.train:
            with torch.no_grad():
                self.model(self.x)
            return
        # as zero_grad in a training step, so that no gradient is accumulated
        self.x.grad = None
        for parameter in self.learnable:
            parameter.grad = None
        y = self.model(self.x)
        if self.grad is None:
            self.grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        torch.autograd.backward(y, self.grad)

    def warm(self) -> None:
        """Draw the incoming gradient of a bare layer, which no run should be charged for."""
        if self.train:
            self.grad = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(1))

    def density(self) -> float:
        """Return the share of neurons that spike; in the conv network, of its first layer."""
        with torch.no_grad():
            self.reset()
            if self.spiking is not None:
                return self.spiking().abs().mean().item()
            # one step has few spikes: take the density of a hundred
            if not self.fresh:
                steps = [self.model(self.x).clone() for _ in range(100)]
                return torch.stack(steps).abs().mean().item()
            return self.model(self.x).detach().abs().mean().item()


def assemble(case: Case, cell: MakeCell, *, folded: bool, batch_first: bool = False) -> TorchTask:
    """Build the task of a library from a factory of its spiking layers."""
    layers = parts(case, cell)
    cells = [layer for layer in layers if not isinstance(layer, nn.Module)]
    x = inputs(case)
    # every library gets the input in its own layout, without a copy in the measured run
    if batch_first:
        x = x.transpose(0, 1)
    model: Model = Folded(layers) if folded else Stepped(layers)
    if case.kind == "stream" and not folded:
        x, model = x[0], cells[0]
    if case.kind != "conv":
        x = x.contiguous()

    def reset() -> None:
        for each in cells:
            each.reset()

    first = (Folded if folded else Stepped)(layers[:2])
    return TorchTask(
        case,
        x,
        model,
        reset,
        [p for layer in layers for p in layer.parameters()],
        (lambda: first(x)) if case.kind == "conv" else None,
    )
