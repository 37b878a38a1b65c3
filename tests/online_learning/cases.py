"""Networks and gradients that the tests of online learning share."""

from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn

STEPS = 12


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Linear(6, 5)
    with torch.no_grad():
        first.weight.mul_(2)
    return nn.Sequential(first, *middle, nn.Linear(5, 3), nn.Tanh()).double()


def two_layers() -> nn.Sequential:
    return network(snn.LIF(5), nn.Linear(5, 5), snn.Readout(5))


def convolution() -> nn.Sequential:
    neurons = snn.SLIF(3, dim=1)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), neurons).double()


def step_losses(y: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (weights * y + y.square()).flatten(1).sum(1)


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters(model)}
    model.zero_grad()
    return found


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def online_gradients(model: nn.Module, x: Tensor, rule: Any = "exact") -> dict[str, Tensor]:
    """Backward at every step; the model is left at rest."""
    learner = tt.online(model, rule)
    y = torch.stack([learner(step) for step in x])
    learner.zero_states()
    for t, step in enumerate(x):
        y = y.detach().index_copy(0, torch.tensor(t), learner(step)[None])
        step_losses(y)[t].backward()
    learner.zero_states()
    return named_gradients(model)


def bptt_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    step_losses(tt.unroll(model, x, by="step", from_rest=True)).sum().backward()
    return named_gradients(model)


def assert_exact(model: nn.Module, x: Tensor) -> None:
    expected = bptt_gradients(model, x)
    found = online_gradients(model, x)
    assert found.keys() == expected.keys()
    assert_same(found, expected)
    assert all(bool(g.any()) for n, g in expected.items() if n.startswith("0"))
