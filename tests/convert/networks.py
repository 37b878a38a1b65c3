"""Random networks that can be converted, exact in float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def eighths(*shape: int, reach: int = 8) -> Tensor:
    """Draw multiples of 1/8, between plus and minus ``reach`` eighths: sums of them are exact."""
    return torch.randint(-reach, reach + 1, shape).double() / 8


def fill(model: nn.Module, path: str, values: Any) -> None:
    """Write a parameter."""
    parameter = model.get_parameter(path)
    parameter.data = torch.tensor(values).to(parameter).reshape(parameter.shape)


class Residual(nn.Module):
    """Two branches and a shortcut, with activations of their own and one behind the sum."""

    def __init__(self, channels: int, relu: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 1, bias=False)
        self.inner, self.outer = relu(), relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.two(self.inner(self.one(x))) + x)


def network(
    seed: int, relu: Callable[[], nn.Module]
) -> tuple[nn.Sequential, Callable[[int], Tensor]]:
    """Return a network of multiples of 1/8 in float64, and how its inputs are drawn."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module]
    if draw.random() < 0.5:
        sizes = [draw.choice([1, 3, 5]) for _ in range(draw.choice([2, 3, 4]))]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, draw.random() < 0.7)]
            layers += [*[nn.Dropout(0.5)] * draw.choice([0, 1]), relu()]
        layers += [nn.Linear(sizes[-1], 2)] * draw.choice([0, 1])
        shape: tuple[int, ...] = (sizes[0],)
    else:
        pools = [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1)]
        layers = [nn.Conv2d(1, 2, 3, padding=1), relu()]
        layers += [Residual(2, relu)] * draw.choice([0, 1])
        layers += [draw.choice(pools)]
        layers += [nn.Conv2d(2, 3, 3, stride=draw.choice([1, 2]), bias=draw.random() < 0.5), relu()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
        shape = (1, 8, 8)
    model = nn.Sequential(*layers).double()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for parameter in module.parameters():
                parameter.data = eighths(*parameter.shape)
    if draw.random() < 0.5:
        model.eval()
    return model, lambda number: eighths(number, *shape)
