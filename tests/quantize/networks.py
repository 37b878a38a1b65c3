"""Random networks of every kind that has an integer form, each with a sample."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import cases
from tracetorch import chips, snn

CHIPS = {"Xylo 1": chips.xylo.XYLO_1, "Xylo 2": chips.xylo.XYLO_2}


def spikes(*shape: int, seed: int = 0, share: float = 0.4) -> Tensor:
    """Draw spikes."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < share).float()


def widened(model: nn.Module, factor: float = 3.0, *, whole: bool = True) -> nn.Module:
    """Make weights so large that neurons fire, and no two parameters of neurons alike."""
    cases.vary(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("delay"):
                parameter.mul_(factor)
    for module in model.modules():
        if whole and isinstance(module, snn.Delay):
            module.round_()
    return model


def random_network(seed: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a network, a sample and arguments of ``prepare``."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    inputs = draw.choice([1, 3, 7])
    layers: list[nn.Module] = []
    before = inputs
    for _ in range(draw.choice([1, 2])):
        width = draw.choice([1, 5, 8])
        name = draw.choice(cases.SPIKING)
        options = {"reset": draw.choice(["subtract", "zero", "none"])}
        neuron: Any = getattr(snn, name)(width, **options)
        if draw.random() < 0.4:
            neuron = snn.Recurrent(neuron, nn.Linear(width, width, draw.random() < 0.5))
        norm = nn.BatchNorm1d(width)
        norm.running_mean, norm.running_var = torch.randn(width) / 9, torch.rand(width) + 0.5
        layers += [nn.Linear(before, width, draw.random() < 0.7)]
        layers += [*[norm] * (draw.random() < 0.4), neuron]
        if draw.random() < 0.3:
            whole = torch.randint(0, 3, (width,)).float()
            layers.append(snn.Delay(width, max_delay=2, delay=whole))
        layers += [nn.Dropout(0.5)] * (draw.random() < 0.3)
        before = width
    last = getattr(snn, draw.choice((*cases.READOUTS, "LIF", "BSRLIF")))
    layers += [nn.Linear(before, 3), last(3)]
    x = spikes(14, 3, inputs, seed=seed)
    if draw.random() < 0.4:
        x = torch.randn(14, 3, inputs)
    widths = {"weight_bits": draw.choice([2, 4, 8, 12]), "state_bits": draw.choice([10, 16, 22])}
    return widened(nn.Sequential(*layers)), x, widths


def convolutional() -> tuple[nn.Module, Tensor]:
    """Convolutions, a batch norm, both pools, neurons of channels and of places."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4) / 9, torch.rand(4) + 0.5
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), norm, nn.AvgPool2d(2)),
        *(snn.LIF(4, dim=-3), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), snn.SLIF(6, dim=-3)),
        *(nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(6, 5), snn.Readout(5)),
    )
    return widened(model), torch.rand(9, 2, 1, 12, 12)


def along_a_line() -> tuple[nn.Module, Tensor]:
    """One-dimensional convolutions, also as what feeds neurons back, and neurons of places."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        snn.Recurrent(snn.LIF(4, dim=-2), nn.Conv1d(4, 4, 3, padding=1)),
        *(nn.AvgPool1d(2), nn.Conv1d(4, 3, 3, dilation=2), nn.Flatten(), snn.LIF(6)),
        *(nn.Linear(6, 2), snn.LIF(2)),
    )
    return widened(model), spikes(9, 2, 2, 12)


def delayed() -> tuple[nn.Module, Tensor]:
    """Delays of synapses and axons, between two steps, also of what feeds neurons back."""
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = torch.randn(6) / 9, torch.rand(6) + 0.5
    model = nn.Sequential(
        *(snn.DelayedLinear(5, 6, max_delay=4), norm),
        snn.Recurrent(snn.LIF(6), snn.DelayedLinear(6, 6, max_delay=3, learnable=False)),
        *(snn.Delay(6, max_delay=2), nn.Linear(6, 3), snn.Readout(3)),
    )
    # a network of random delays, which rounding changes
    return widened(model, 2.0, whole=False), spikes(14, 3, 5)


def connected() -> tuple[nn.Module, Tensor]:
    """Masks and signs: of a product with a batch norm, of feedback, of delays, of the readout."""
    torch.manual_seed(4)
    norm = nn.BatchNorm1d(8)
    norm.running_mean, norm.running_var = torch.randn(8) / 9, torch.rand(8) + 0.5
    model = nn.Sequential(
        *(nn.Linear(6, 8), norm, snn.Recurrent(snn.LIF(8), nn.Linear(8, 8))),
        *(snn.DelayedLinear(8, 8, max_delay=3), snn.SLIF(8), nn.Linear(8, 3), snn.Readout(3)),
    )
    return drawn_connections(widened(model, 2.0, whole=False)), spikes(14, 3, 6)


def connected_channels() -> tuple[nn.Module, Tensor]:
    """Masks and signs of convolutions."""
    torch.manual_seed(5)
    model = nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1), snn.LIF(4, dim=-2)),
        *(nn.Conv1d(4, 4, 3), snn.LIF(4, dim=-2)),
        *(nn.Flatten(), nn.Linear(40, 2), snn.LIF(2)),
    )
    return drawn_connections(widened(model, 2.0, whole=False)), spikes(9, 2, 2, 12)


class Residual(nn.Module):
    """Blocks whose spikes are added to those that enter them, one within another."""

    def __init__(self, neurons: Callable[..., nn.Module]) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8)
        norm.running_mean, norm.running_var = torch.randn(8) / 9, torch.rand(8) + 0.5
        self.first = nn.Sequential(nn.Linear(5, 8), snn.LIF(8))
        self.block = nn.Sequential(nn.Linear(8, 8, bias=False), norm, neurons(8))
        self.outer = nn.Sequential(
            nn.Linear(8, 8), snn.Recurrent(snn.SLIF(8), nn.Linear(8, 8, False))
        )
        self.shortcut = snn.Delay(8, max_delay=2, delay=1.0)
        self.readout = nn.Sequential(nn.Dropout(), nn.Linear(8, 3), snn.Readout(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.outer(x)
        y = y + self.block(y)
        y += self.shortcut(x)
        result: Tensor = self.readout(y)
        return result


def residual(neurons: Callable[..., nn.Module] = snn.LIF) -> tuple[nn.Module, Tensor]:
    """Branches that are added, of spikes that are all of one size, or of several."""
    torch.manual_seed(6)
    return widened(Residual(neurons), 2.5), spikes(14, 3, 5)


def unlike_branches() -> tuple[nn.Module, Tensor]:
    return residual(lambda size: snn.BLIF(size, pos_scale=0.4, neg_scale=0.7))


def drawn_connections(model: nn.Module) -> nn.Module:
    """Connect every product by half, its inputs excitatory or inhibitory."""
    generator = torch.Generator().manual_seed(0)
    products = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    for product in products:
        weight = product.weight
        mask = torch.rand(weight.shape, generator=generator) < 0.5
        signs = torch.where(torch.rand(weight.shape[1], generator=generator) < 0.7, 1, -1)
        snn.connect(product, mask=mask, signs=signs)
    return model


def on_chip(version: str, seed: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a network for a chip."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    bias = version != "Xylo 1"
    inputs, width = draw.choice([2, 5]), draw.choice([3, 8])
    layers: list[nn.Module] = []
    before = inputs
    for index in range(draw.choice([1, 2])):
        kind = draw.choice([snn.LIF, snn.SLIF])
        neuron: Any = kind(width, beta=draw.choice([0.75, 0.9]))
        if (index + seed) % 2:
            neuron = snn.Recurrent(neuron, nn.Linear(width, width, bias=False))
        layers += [nn.Linear(before, width, bias), neuron]
        before = width
    layers += [nn.Linear(before, 4, bias), snn.SLIF(4, beta=0.8)]
    x = spikes(20, 3, inputs, seed=seed)
    x = x * torch.randint(1, 5, x.shape)
    return widened(nn.Sequential(*layers), 4.0), x, {"chip": CHIPS[version]}


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    **{f"random {seed}": (lambda seed=seed: random_network(seed)) for seed in range(24)},  # type: ignore[misc]
    "convolutional": convolutional,
    "along a line": along_a_line,
    "delayed": delayed,
    "residual": residual,
    "unlike branches": unlike_branches,
    "connected": connected,
    "connected channels": connected_channels,
    **{
        f"{version} {seed}": (lambda version=version, seed=seed: on_chip(version, seed))  # type: ignore[misc]
        for version in CHIPS
        for seed in range(4)
    },
}

# For tests whose cost is a compilation for each network: the fast ones take some.
_SLOW = {
    "along a line",
    "connected channels",
    *(f"random {seed}" for seed in range(2, 24)),
    *(f"{version} {seed}" for version in CHIPS for seed in (1, 2)),
    "Xylo 1 3",
    "Xylo 2 0",
}
FEW_CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in CASES]


def case(name: str) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a network of the list, its sample and the arguments of ``prepare``."""
    model, x, *arguments = CASES[name]()
    return model, x, arguments[0] if arguments else {}
