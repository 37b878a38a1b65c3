"""Toy networks, each named for what it shows. What is shown once only is a ``Net`` or a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import snn


class Net(nn.Module):
    """Parts by name, and the function of them that its forward is."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.function(self, *inputs, **named)


def module(forward: Callable[..., Any], name: str = "Model", **parts: Any) -> Any:
    """Make a module with parts, whose forward is a function of it and of its inputs."""
    made: Any = type(name, (snn.TTModule,), {"forward": forward})()
    for key, part in parts.items():
        setattr(made, key, part)
    return made


class Residual(nn.Module):
    """Adds a body to what goes by it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Parallel(nn.Module):
    """Layers that see one input; their outputs are a tuple."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


class Listed(snn.TTModule):
    """Layers in a plain list, where PyTorch does not find them."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.cells = list(layers)

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            x = cell(x)
        return x


class Twice(nn.Sequential):
    """Layers that are called twice in a step, each time from where they were left."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(super().forward(x))
        return y


class Counts(snn.TTModule):
    """A memory of its own: half of it, and the input."""

    last: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.memory("last", size)

    def forward(self, x: Tensor) -> Tensor:
        self.last = 0.5 * self.last + x
        return self.last


class Fails(nn.Module):
    """Passes its input on, and raises an error in the call of a number."""

    def __init__(self, at: int = 3) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:
            raise ArithmeticError("the forward fails")
        return x


class Leaky(snn.Neuron):
    """The smallest neuron of one's own that fires."""

    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, beta: Tensor, base: Tensor, spike: Any) -> Any:
        mem = beta * mem + x
        fired = spike(mem - base)
        return fired, mem - fired * base


class Smooth(snn.Neuron):
    """A neuron of one's own that never fires."""

    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.8)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, beta: Tensor) -> Any:
        mem = torch.tanh(beta * mem + x)
        return mem, mem


class Doubled(snn.LIF):
    """A subclass whose forward does more than its step."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = super().forward(2 * x)
        return y


class Charged(snn.LIF):
    """A subclass that starts from a value of its own."""

    def initial_state(self, name: str, shape: torch.Size, *kind: Any) -> Tensor:
        return super().initial_state(name, shape, *kind) + 0.5
