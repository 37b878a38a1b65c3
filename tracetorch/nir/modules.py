"""Define modules for the nodes of NIR that PyTorch has none for: Scale, Threshold, Delay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.nir.graph import Node, Shape, broadcast, elementwise
from tracetorch.nir.layer_parameters import to_array
from tracetorch.nir.neurons import SURROGATE, OneStep
from tracetorch.nir.options import WriteOptions
from tracetorch.snn import Neuron, TTModule


class _PerElement(nn.Module):
    """Hold one parameter of the shape of a sample, or one number for all."""

    kind: str
    value: str

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_parameter(self.value, nn.Parameter(value))

    def extra_repr(self) -> str:
        """Return the shape of the parameter."""
        return str(list(getattr(self, self.value).shape))

    def node(self, shape: Shape, options: WriteOptions) -> Node:
        """Return the node that the module was read from, with the parameter it has now."""
        value = to_array(getattr(self, self.value))
        return Node(self.kind, {self.value: broadcast(value, shape).astype(value.dtype)})


class Rescale(_PerElement):
    """Multiply every element by a factor of its own: ``x * scale``."""

    kind, value = "Scale", "scale"
    scale: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Scale one time step, or many in the batch."""
        return (x * self.scale).to(x.dtype)


class Spike(_PerElement):
    """Compare every element with a threshold: ``H(x - threshold)``, backward by a surrogate."""

    kind, value = "Threshold", "threshold"
    threshold: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Spike for one time step, or for many in the batch."""
        return SURROGATE(x - self.threshold).to(x.dtype)


class Across(TTModule):
    """Flatten samples for a neuron layer whose parameters differ along all their dimensions.

    Args:
        neuron: a layer with its neurons at dim -1.
        ndim: the number of dimensions of a sample.
    """

    def __init__(self, neuron: Neuron, ndim: int) -> None:
        super().__init__()
        self.neuron: Neuron = neuron
        self.ndim = ndim

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y = self.neuron(x.flatten(-self.ndim))
        return torch.unflatten(y, -1, x.shape[-self.ndim :])


class DelayLine(TTModule):
    """Give ``x`` of some steps ago, zero before there was one.

    Args:
        steps: whole numbers, of the shape of one sample, or one number.
        shape: the shape of one sample.
    """

    steps: Tensor

    def __init__(self, steps: Tensor, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("steps", steps)
        self.links = nn.ModuleList(OneStep(shape[-1]) for _ in range(int(steps.max())))

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        if self.steps.ndim == 0:
            for link in self.links:
                x = link(x)
            return x
        y = torch.where(self.steps == 0, x, torch.zeros_like(x))
        for passed, link in enumerate(self.links, start=1):
            x = link(x)
            y = torch.where(self.steps == passed, x, y)
        return y

    def node(self, shape: Shape, options: WriteOptions) -> Node:
        """Return the node that the module was read from."""
        return elementwise("Delay", shape, delay=self.steps.cpu().numpy() * options.clock.dt)
