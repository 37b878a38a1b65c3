"""Models that change between two passes by layer: conclusions must not be believed too long."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.core import walk_memo
from tracetorch.snn.neuron import Neuron

T, B, N = 5, 3, 4


class Own(snn.LIF):
    """A class to be changed."""


def made() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(N, N), Own(N), nn.Flatten(1), nn.Softmax(-1), nn.Linear(N, N), snn.LIF(N)
    )


def sequence() -> Tensor:
    return 3 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1))


class Counter(nn.Module):
    """Keeps something from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def _weight(net: Any) -> None:
    net[0].weight = nn.Parameter(torch.eye(N))


def _in_place(net: Any) -> None:
    with torch.no_grad():
        net[0].weight.mul_(2.0)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a parameter": _weight,
    "a parameter in place": _in_place,
    "a hook": lambda net: net[0].register_forward_hook(lambda m, args, y: 2 * y),
    "a hook before": lambda net: net[0].register_forward_pre_hook(lambda m, args: 2 * args[0]),
    "a forward of an instance": lambda net: setattr(net[0], "forward", lambda x: 2 * x),
    "a forward of a neuron": lambda net: setattr(net[1], "forward", lambda x: 2 * x),
    "a neuron": lambda net: net.__setitem__(1, snn.LIF(N, beta=0.1)),
    "a neuron that becomes a readout": lambda net: net.__setitem__(1, snn.Readout(N)),
    "a neuron more": lambda net: net.append(snn.LIF(N)),
    "a recurrent layer": lambda n: n.__setitem__(1, snn.Recurrent(snn.LIF(N), nn.Linear(N, N))),
    "an option": lambda net: setattr(net[1], "reset", "none"),
    "a dimension of a module": lambda net: setattr(net[2], "start_dim", 0),
    "another dimension of a module": lambda net: setattr(net[3], "dim", 0),
    "a module with memory": lambda net: net.__setitem__(0, nn.RNN(N, N)),
    "a module that keeps something": lambda net: net.insert(0, Counter()),
    "a neuron called twice": lambda net: net.append(net[1]),
    "the mode": lambda net: net.insert(0, nn.Dropout(1.0)),
}


def result(net: Any) -> Any:
    try:
        y = tt.unroll(net, sequence())
        y.sum().backward()
    except Exception as error:
        return type(error), str(error)
    return [y.detach(), *(p.grad for p in net.parameters())]


def same(found: Any, expected: Any) -> bool:
    if isinstance(found, tuple) or isinstance(expected, tuple):
        return bool(found == expected)
    return len(found) == len(expected) and all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made()
    first = copy.deepcopy(result(net))
    tt.zero_states(net)
    net.zero_grad()
    CHANGES[name](net)
    twin = made()
    CHANGES[name](twin)
    twin.load_state_dict(net.state_dict())
    found = result(net)
    monkeypatch.setattr(walk_memo, "_memos", {})
    assert same(found, result(twin))
    assert not same(found, first), "a model that is not looked at again would pass"


def test_an_override_that_a_class_is_given_later_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net = made()
    tt.unroll(net, sequence())

    def forward_step(self: Neuron, x: Tensor) -> Tensor:
        return Neuron.forward_step(self, 2 * x)

    monkeypatch.setattr(Own, "forward_step", forward_step)
    with pytest.raises(ValueError, match=r"1 .Own. overrides forward_step, and not forward_sequ"):
        tt.unroll(net, sequence())
    monkeypatch.undo()
    tt.zero_states(net)
    assert torch.equal(tt.unroll(net, sequence()), tt.unroll(made(), sequence()))


def test_a_model_that_was_refused_is_refused_again_until_it_changes() -> None:
    net = made()
    net.append(nn.RNN(N, N))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"6 .RNN. keeps a memory of its own"):
            tt.unroll(net, sequence())
    del net[6]
    assert torch.equal(tt.unroll(net, sequence()), tt.unroll(made(), sequence()))
