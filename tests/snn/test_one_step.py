"""A sequence ``[T, B, features]`` taken for one step is warned of, tokens are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.snn import stateful_layer


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stateful_layer, "_warned_of_sequence", False)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), snn.LIF(4))


X = torch.rand(6, 3, 4)


def batches() -> None:
    model = net()
    for _ in range(2):
        tt.zero_states(model)
        model(X.clone())


def slices_of_a_data_set() -> None:
    model = net()
    for x in torch.rand(3, 6, 3, 4):
        model(x)
        tt.zero_states(model)


def flattened_images() -> None:
    net()(torch.rand(6, 3, 2, 2).flatten(2))


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def training_step(self, x: Tensor) -> Tensor:
        self.model(x)
        y: Tensor = self.model[0](x)  # type: ignore[index]
        return y


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "mistake",
    [
        lambda: net()(X),
        lambda: snn.LIF(4)(X),
        lambda: snn.Recurrent(snn.LIF(4), nn.Linear(4, 4))(X),
        lambda: snn.Delay(4, max_delay=2)(X),
        lambda: net()(torch.rand(6, 3, 5, 4)),
        lambda: Trainer(net()).training_step(X),
        batches,
        slices_of_a_data_set,
        flattened_images,
    ],
)
def test_a_sequence_is_warned_of_once(mistake: Callable[[], object], grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        with pytest.warns(UserWarning, match="for ONE time step.* call tt.unroll"):
            mistake()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mistake()


class HandWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.lif = nn.Linear(4, 4), snn.LIF(4)

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.lif(self.q(x))
        return q @ q.transpose(-2, -1) @ q


class WithFunction(HandWritten):
    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.lif(self.q(x))
        return torch.einsum("bnd,bmd->bnm", q, q)


class Patches(HandWritten):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lif(x.flatten(2).transpose(1, 2))
        return y


class OwnLoop(HandWritten):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.lif(self.q(step)) for step in x])


class Spikformer(HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q = self.lif(self.q(x))
        y: Tensor = self.attention(q, q, q)[0]
        return y


def steps(model: Any, x: Tensor, count: int = 3) -> None:
    for _ in range(count):
        model(x)
    tt.zero_states(model)
    for _ in range(count):
        model(x)


def own_loop() -> None:
    model = OwnLoop()
    model(torch.rand(5, 6, 3, 4))
    tt.zero_states(model)


def one_step_of_many() -> None:
    x, model = torch.rand(5, 6, 3, 4), net()
    model(x[0])
    model(x[1])
    tt.zero_states(model)


def measured_after_one_step() -> None:
    model = net()
    for _ in range(2):
        model(X)
        tt.unroll(model, torch.rand(5, 6, 3, 4), from_rest=True)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "meant",
    [
        lambda: steps(net(), X),
        lambda: steps(net(), torch.rand(2, 2, 6, 4)),
        lambda: steps(snn.Recurrent(snn.LIF(4), nn.Linear(4, 4)), X),
        lambda: steps(snn.LockedDropout(4), X),
        lambda: steps(snn.LockedDropout(4).eval(), X, 1),
        lambda: nn.Sequential(nn.LayerNorm(4), *net())(X),
        lambda: nn.Sequential(nn.Embedding(9, 4), *net())(torch.ones(6, 3, dtype=torch.long)),
        lambda: HandWritten()(X),
        lambda: WithFunction()(X),
        lambda: Spikformer()(X),
        lambda: Patches()(torch.rand(2, 4, 3, 3)),
        own_loop,
        one_step_of_many,
        measured_after_one_step,
        lambda: tt.metrics.profile(net(), torch.rand(5, 6, 3, 4)),
    ],
)
def test_tokens_are_not_warned_of(meant: Callable[[], object], grad: bool) -> None:
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*for ONE time step")
        meant()


def test_the_question_leaves_no_trace() -> None:
    """A pass by layer does not take what a layer has noted for memory of the model."""
    model = net()
    for _ in range(2):
        model(X)
    tt.zero_states(model)
    assert torch.equal(tt.unroll(model, X), tt.unroll(net_like(model), X))


def net_like(model: nn.Module) -> nn.Module:
    other = net()
    other.load_state_dict(model.state_dict())
    return other
