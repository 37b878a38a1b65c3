"""The nodes of NIR that PyTorch has no module for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.nir.graph import Shape
from tracetorch.nir.neurons import SURROGATE, OneStep
from tracetorch.snn import Neuron, TTModule


class Rescale(nn.Module):
    """``x * scale``, a factor per element.

    Args:
        scale: of the shape of one sample, or one number.
    """

    scale: nn.Parameter

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        """One time step, or many in the batch."""
        return (x * self.scale).to(x.dtype)

    def extra_repr(self) -> str:
        """The shape of the factors."""
        return str(list(self.scale.shape))


class Spike(nn.Module):
    """``H(x - threshold)``, a threshold per element; backward through a surrogate.

    Args:
        threshold: of the shape of one sample, or one number; of any sign.
    """

    threshold: nn.Parameter

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold)

    def forward(self, x: Tensor) -> Tensor:
        """One time step, or many in the batch."""
        return SURROGATE(x - self.threshold).to(x.dtype)

    def extra_repr(self) -> str:
        """The shape of the thresholds."""
        return str(list(self.threshold.shape))


class Across(TTModule):
    """A neuron layer whose parameters differ along all dimensions of a sample: it sees them flat.

    Args:
        neuron: a layer with its neurons at dim -1.
        ndim: how many dimensions a sample has.
    """

    def __init__(self, neuron: Neuron, ndim: int) -> None:
        super().__init__()
        self.neuron = neuron
        self.ndim = ndim

    def forward(self, x: Tensor) -> Tensor:
        """One time step."""
        y = self.neuron(x.flatten(-self.ndim))
        return torch.unflatten(y, -1, x.shape[-self.ndim :])


class DelayLine(TTModule):
    """``x`` of some steps ago, zero before there was one; every element has a number of its own.

    Args:
        steps: whole numbers, of the shape of one sample, or one number.
        shape: the shape of one sample.
    """

    steps: Tensor

    def __init__(self, steps: Tensor, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("steps", steps)
        links = int(steps.max())
        self.links = nn.ModuleList(OneStep(shape[-1]) for _ in range(links))

    def forward(self, x: Tensor) -> Tensor:
        """One time step."""
        if self.steps.ndim == 0:
            for link in self.links:
                x = link(x)
            return x
        y = torch.where(self.steps == 0, x, torch.zeros_like(x))
        for passed, link in enumerate(self.links, start=1):
            x = link(x)
            y = torch.where(self.steps == passed, x, y)
        return y
