"""Learning on the device: what ``tt_learn`` in C makes of the weights is what the library makes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.export.c_programs import CNetwork, needs_compiler
from tests.export.models import Adaptive
from tracetorch import snn
from tracetorch.export.c_code.ordered import OrderedSums

pytestmark = needs_compiler
RULES = ("exact", "eprop", "ottt", "local")


def network(kind: str, hidden: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Linear(5, hidden), nn.Linear(hidden, 3)
    layers: dict[str, Any] = {
        "LIF": lambda: snn.LIF(hidden, pos_threshold=0.4),
        "RLIF": lambda: snn.RLIF(hidden, pos_threshold=0.4),
        "SLIF": lambda: snn.SLIF(hidden, pos_threshold=0.4),
        "AdLIF": lambda: tt.neurons.AdLIF(hidden, pos_threshold=0.4),
        "own": lambda: Adaptive(hidden),
        "recurrent": lambda: snn.Recurrent(
            snn.LIF(hidden, pos_threshold=0.4), nn.Linear(hidden, hidden)
        ),
    }
    return nn.Sequential(first, layers[kind](), last, snn.Readout(3, beta_rank=0))


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of products: those of neurons go through functions of ``math.h``."""
    products = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [parameter for module in products for parameter in module.parameters()]


def drawn(steps: int, inputs: int = 5, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(steps, 1, inputs, generator=generator) - 0.5
    return x, 0.2 * torch.randn(steps, 1, outputs, generator=generator)


def learned(model: nn.Module, rule: Any, optimizer: Any, x: Tensor, signals: Tensor) -> Tensor:
    """The library's learner, with an optimizer of PyTorch; the outputs ``[T, size]``."""
    outputs = []
    learner = tt.online(model, rule)
    with tt.fuse.backend("eager"), OrderedSums():
        for step, signal in zip(x, signals, strict=True):
            y = learner(step)
            optimizer.zero_grad()
            y.backward(signal)
            optimizer.step()
            outputs.append(y.detach().flatten())
    return torch.stack(outputs)


def check(
    model: nn.Module, rule: Any, folder: Path, steps: int, parameters: Any = weights_of
) -> CNetwork:
    model.eval()
    x, signals = drawn(steps)
    net = CNetwork(
        copied := copy.deepcopy(model),
        x[:20],
        folder,
        learner=tt.online(copied, rule),
        optimizer=torch.optim.SGD(parameters(copied), 0.01),
    )
    got, held = net.learn(x, signals)
    before = {name: value.clone() for name, value in model.named_parameters()}
    y = learned(model, rule, torch.optim.SGD(parameters(model), 0.01), x, signals)
    assert torch.equal(got, y)
    assert (y != 0).any()
    moved = 0
    for name, weight in model.named_parameters():
        if name in held:
            assert torch.equal(held[name], weight.detach().flatten()), name
            moved += bool((weight != before[name]).any())
        else:
            assert torch.equal(weight, before[name]), name
    assert moved >= 2
    return net


@pytest.mark.parametrize("kind", ["LIF", "RLIF", "SLIF", "AdLIF", "own", "recurrent"])
@pytest.mark.parametrize("rule", ["eprop", "ottt"])
def test_weights_are_those_of_the_library(rule: str, kind: str, tmp_path: Path) -> None:
    check(network(kind), rule, tmp_path, 50)
