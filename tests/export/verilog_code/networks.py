"""Networks of integers for circuits: what is between neurons, by name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import module
from tracetorch import chips, integers, snn

needs_iverilog = pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs iverilog")
needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="needs verilator")
needs_yosys = pytest.mark.skipif(shutil.which("yosys") is None, reason="needs yosys")


def make(folder: Path, target: str) -> str:
    """Run a target of an exported Makefile; return what it printed."""
    done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"make {target}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def integer_linear(inputs: int, outputs: int, bias: bool = True, **options: Any) -> nn.Module:
    return filled(integers.Linear(inputs, outputs, bias, **options))


def filled(product: Any) -> Any:
    """Fill a product of integers with random ones."""
    most = 2 ** (product.weight_bits - 1)
    product.weight.copy_(torch.randint(-most, most, product.weight.shape))
    if product.bias is not None:
        product.bias.copy_(torch.randint(-200, 200, product.bias.shape))
    return product


def spiking(neurons: int, dim: int = -1, **options: Any) -> integers.LeakyIntegrator:
    """Return an integer neuron that fires often."""
    options = {"beta": 200, "pos_threshold": 90, "state_bits": 12} | options
    return integers.LeakyIntegrator(neurons, dim, **options)


def residual(self: Any, x: Tensor) -> Tensor:
    """A branch that is added, and one that is joined to it."""
    y = self.one(self.first(x))
    return torch.cat([self.other(self.second(y) + self.first(x)), y.flip(1)], 1)


def _residual() -> nn.Module:
    products: dict[str, Any] = {
        "first": integer_linear(5, 5),
        "second": integer_linear(5, 5, shift=1),
    }
    return module(residual, **products, one=spiking(5), other=spiking(5, alpha=100))


def views(self: Any, x: Tensor) -> Tensor:
    """Copies in other orders, parts, sums and a step on a transposed view."""
    y = self.neuron(self.product(x))
    y = self.rows(y.permute(0, 2, 3, 1))
    # two sums, of rows and of both, and chosen places
    y = y.sum(1) + y.sum((1, 2), keepdim=True)[:, 0]
    return self.last(y.roll(1, 1))[:, ::2] * 3


def _views() -> nn.Module:
    product, rows = filled(integers.Conv2d(2, 3, 1)), integer_linear(3, 4)
    neurons: dict[str, Any] = {"neuron": spiking(3, -3), "last": spiking(4, alpha=50)}
    return module(views, product=product, rows=rows, **neurons)


def pair(self: Any, spikes: Tensor, current: Tensor) -> dict[str, Tensor]:
    """Two inputs, one of them analog, and two outputs."""
    y = self.neuron(self.product(spikes) + current)
    return {"spikes": y, "doubled": 2 * y + current}


def _pair() -> nn.Module:
    return module(pair, product=integer_linear(4, 3), neuron=spiking(3, neg_threshold=80))


class Counter(snn.Neuron):
    """A step of one's own: an adaptive threshold, states that begin elsewhere, a truth value."""

    states = ("mem", "level", "quiet")

    def __init__(self, neurons: int) -> None:
        super().__init__(neurons)
        self.weight("drop", torch.randint(1, 9, (neurons,)).float(), rank=1, learnable=False)

    def initial_state(self, name: str, shape: torch.Size, *kind: Any) -> Tensor:
        start = super().initial_state(name, shape, *kind)
        return start + 40.0 + torch.arange(self.num_neurons) if name == "level" else start

    @staticmethod
    def step(x: Tensor, mem: Tensor, level: Tensor, quiet: Tensor, *, drop: Tensor) -> Any:
        """Fire above a level that rises with each spike, twice if it was quiet before."""
        mem = integers.saturate(mem + x - integers.shift_right(mem, 2, "trunc"), 10)
        fired = (mem > level).to(x.dtype)
        level = integers.saturate(level + 16 * fired - drop * (1 - fired), 9).clamp(min=20)
        spikes = fired + fired * quiet
        return spikes, mem * (1 - fired), level, (fired == 0).to(x.dtype)


def _spikes(*shape: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(14, 2, *shape) < rate).float()


def _graded(*shape: int, least: int = -5, most: int = 6) -> Tensor:
    return torch.randint(least, most + 1, (14, 2, *shape)).float() * _spikes(*shape, rate=0.6)


def _delayed() -> nn.Module:
    delay = torch.tensor([[0.0, 1, 2, 3]] * 3)
    made = integers.DelayedLinear(4, 3, max_delay=3, delay=delay)
    filled(made.linear)
    return nn.Sequential(made, spiking(3))


def _convolved() -> nn.Module:
    return nn.Sequential(
        filled(integers.Conv2d(2, 4, 3, stride=2, padding=1)),
        spiking(4, -3, pos_threshold=torch.randint(40, 90, (4,)).float()),
        filled(integers.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=(2, 1), groups=2)),
        spiking(6, -3),
        nn.MaxPool2d(3, 2, padding=1),
        integers.SumPool2d(2),
        nn.Flatten(),
        integer_linear(6, 3),
    )


def _sequence() -> nn.Module:
    return nn.Sequential(
        filled(integers.Conv1d(2, 3, 3, padding=2, dilation=2)),
        spiking(3, -2, decay=integers.Shift(), beta=2),
        nn.MaxPool1d(2),
        filled(integers.Conv1d(3, 3, 2, stride=3, groups=3)),
        spiking(3, -2),
    )


def _recurrent() -> nn.Module:
    inner = snn.Recurrent(spiking(6, reset="zero"), integer_linear(6, 6, False))
    return nn.Sequential(integer_linear(5, 6), inner, integer_linear(6, 2), readout(2))


def readout(neurons: int) -> integers.LeakyIntegrator:
    """Return a neuron without a threshold."""
    return integers.LeakyIntegrator(neurons, beta=240, beta_ema=True)


def _own() -> nn.Module:
    return nn.Sequential(integer_linear(4, 7, weight_bits=5), Counter(7), integer_linear(7, 2))


def _wide() -> nn.Module:
    neuron = spiking(3, state_bits=32, beta=3, decay=integers.Shift(), pos_threshold=90_000)
    return nn.Sequential(integer_linear(4, 3, weight_bits=16, shift=3), neuron).double()


NETWORKS: dict[str, tuple[Any, Any]] = {
    "dense": (
        lambda: nn.Sequential(integer_linear(6, 5), spiking(5), integer_linear(5, 2), readout(2)),
        lambda: _spikes(6),
    ),
    "graded": (
        lambda: nn.Sequential(integer_linear(6, 5), spiking(5, neg_threshold=70, neg_scale=2)),
        lambda: _graded(6),
    ),
    "one": (lambda: spiking(1), lambda: _graded(1, least=-90, most=120)),
    "convolved": (_convolved, lambda: _spikes(2, 9, 7)),
    "padded": (  # where an event and a weight meet in a dimension of one place
        lambda: nn.Sequential(
            filled(integers.Conv2d(1, 2, (2, 1), padding=(0, 1))), spiking(2, -3)
        ),
        lambda: _spikes(1, 3, 1),
    ),
    "sequence": (_sequence, lambda: _spikes(2, 9)),
    "recurrent": (_recurrent, lambda: _spikes(5)),
    "delayed": (_delayed, lambda: _spikes(4)),
    "residual": (_residual, lambda: _spikes(5)),
    "views": (_views, lambda: _spikes(2, 3, 2)),
    "pair": (_pair, lambda: (_spikes(4), _graded(3, least=-60, most=60))),
    "own": (_own, lambda: _spikes(4)),
    "wide": (_wide, lambda: _spikes(4).double()),
    "xylo": (
        lambda: nn.Sequential(
            integer_linear(6, 5, False), chips.xylo.LIF(5, dash_mem=3, dash_syn=2, pos_threshold=70)
        ),
        lambda: _graded(6, least=0, most=3),
    ),
    "float": (
        # integers in PyTorch's own layer, with a bias and without a name for a chip
        lambda: nn.Sequential(_rounded(nn.Linear(4, 3)), spiking(3), nn.Flatten()),
        lambda: _spikes(4),
    ),
}


def _rounded(product: nn.Linear) -> nn.Linear:
    for parameter in product.parameters():
        parameter.data = torch.randint(-99, 99, parameter.shape).float()
    return product


def network_and_sample(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """Return a network and a recorded input of two streams, the same for a seed."""
    torch.manual_seed(seed)
    made, sample = NETWORKS[name]
    return made(), sample()
